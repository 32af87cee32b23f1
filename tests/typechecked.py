"""Annotations that are checked at run time, shapes included, wherever tests call the libraries, statistics or pages.

jaxtyping with beartype, behind an import hook of our own: jaxtyping's own hook decorates nested functions too, anew each time
that they are defined, and a step defines several. Here public functions and the methods of classes are decorated, once, when
their module has been executed and before anybody imports a name from it. More CPU seconds, both libraries checked:
test_judge 4 %, test_growth 8 %, test_spectra 2 %, test_schemes 23 %, test_solvers 0 %.
"""

import functools
import inspect
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from types import FunctionType
from typing import Any

import numpy as np
import torch
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintViolation
from jaxtyping import jaxtyped
from numpy.typing import ArrayLike

PACKAGES = ("odenets", "stability", "experiments.harness.statistics", "experiments.harness.report")
# A whole number is a float, and a number of numpy's is a number. What numpy makes an array of is for numpy to say: at run time
# its own annotation refuses a tuple.
CONF = BeartypeConf(
    hint_overrides=FrozenDict(
        {
            int: int | np.integer,
            float: float | int | np.integer | np.floating,
            complex: complex | float | int | np.number,
            ArrayLike: object,
        }
    )
)


def checked(function):
    """The function, its arguments and its result checked against its annotations."""
    if not isinstance(function, FunctionType) or not function.__annotations__ or inspect.isgeneratorfunction(function):
        return function
    for name, hint in list(function.__annotations__.items()):
        # What a module imports for a type checker alone does not exist here.
        if isinstance(hint, str) and hint.isidentifier() and hint not in function.__globals__:
            function.__annotations__[name] = Any
    strict = beartype(conf=CONF)(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        # torch.compile, torch.export and torch.jit.trace record what they see: they are shown the bare function. Under
        # torch.func the checks run: shapes are those that the function sees.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return function(*args, **kwargs)
        try:
            with jaxtyped("context"):
                return strict(*args, **kwargs)
        except BeartypeCallHintViolation as violation:
            if isinstance(violation, BeartypeCallHintParamViolation) and not getattr(violation, "settled", False):
                violation.settled = True
                function(*args, **kwargs)  # what the function refuses by itself, in its own words, is no fault of the caller
            raise

    # Errors name the user's innermost line (`errors.place`), and this file is not the user's.
    call.__code__ = call.__code__.replace(co_filename=function.__code__.co_filename)
    return call


def _decorate(module):
    for name, found in list(vars(module).items()):
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if not inspect.isclass(found):
            setattr(module, name, checked(found))
            continue
        for key, member in list(vars(found).items()):
            if isinstance(member, (staticmethod, classmethod)):
                setattr(found, key, type(member)(checked(member.__func__)))
            elif isinstance(member, property):
                setattr(found, key, property(checked(member.fget), member.fset, member.fdel, member.__doc__))
            elif checked(member) is not member and key != "__new__":
                setattr(found, key, checked(member))


def _named(module):
    return any(f"{module}.".startswith(f"{package}.") for package in PACKAGES)


class _Loader(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        _decorate(module)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        spec = PathFinder.find_spec(fullname, path, target) if _named(fullname) else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """From now on the packages are checked; they must not have been imported yet."""
    early = [name for name in sys.modules if _named(name)]
    assert not early, f"imported before the checks: {early}"
    sys.meta_path.insert(0, _Finder())
