"""Fields that write where others read: into the state they are given, or into a slope they returned before."""

import weakref
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import torch

from odenets.errors import InputError
from odenets.solve.transforms import transforming
from odenets.types import Field


class Guard:
    """Evaluates the fields of one pass so that no state changes under the scheme's hands.

    A block may begin with an in-place ReLU, and its caller still needs the state. PyTorch counts the writes to a tensor: the
    first evaluation of each function gets a copy, and from then on only a function that wrote into it does. Writes that the
    counter does not see, through `.data` or NumPy, are not seen here either.

    Args:
        writes: {function: whether it writes}, a `WeakKeyDictionary`: what earlier passes saw. It decides who is handed a copy,
            never a value: a function that writes against it is refused.
    """

    def __init__(self, writes: MutableMapping[Callable[..., Any], bool] | None = None) -> None:
        self.writes = weakref.WeakKeyDictionary() if writes is None else writes
        self._returned: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def trust(self, function: Callable[..., Any]) -> None:
        """Spare a function that is known to read only the first copy."""
        self.writes.setdefault(function, False)

    def __call__(self, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        """function(*arguments), the last of which is the state and stays as it is.

        Raises:
            ValueError: The function wrote into this state, but not into the first ones; it wrote into a tensor that it had
                returned before and that is still in use.
        """
        *before, y = arguments
        if _uncounted(y):
            return function(*before, y.clone()).clone()
        writes = self.writes.get(function)
        given = y if writes is False else y.clone()
        version = given._version
        slope = function(*before, given)
        wrote = given._version != version
        if wrote or writes is None:
            self.writes[function] = wrote
        if wrote and writes is False:
            raise InputError(
                "a field wrote into its argument, though it had not before, and the state is lost: use "
                "out-of-place operations, or run again, for from now on it gets copies"
            )
        self._check_returned()
        self._returned.append((weakref.ref(slope), slope._version))
        return slope

    def _check_returned(self) -> None:
        # By weak references: a slope that nobody holds may be written to, and must not be kept alive for this.
        self._returned = [(reference, version) for reference, version in self._returned if reference() is not None]
        if any(slope._version != version for reference, version in self._returned if (slope := reference()) is not None):
            raise InputError(
                "a field wrote into a slope that it had returned before and that the scheme still needs: return a "
                "new tensor from each evaluation"
            )


class Habits:
    """Which fields of a stage write, so that passes after the first copy nothing for those that do not.

    Training mode apart: an in-place dropout writes in training only.
    """

    def __init__(self) -> None:
        self._writes: dict[bool, MutableMapping] = {mode: weakref.WeakKeyDictionary() for mode in (True, False)}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Habits, ()  # a copy learns anew

    def guard(self, training: bool) -> Guard:
        """A `Guard` for one pass; one that knows nothing under torch.compile, where copies cost nothing, and for
        torch.jit.trace, whose passes shall not differ."""
        fresh = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return Guard() if fresh else Guard(self._writes[training])


def _uncounted(y: torch.Tensor) -> bool:
    """Whether writes to y go uncounted: then every evaluation gets a copy (under torch.compile, it costs nothing)."""
    return torch.compiler.is_compiling() or transforming() or torch.is_inference_mode_enabled() or y.is_inference()


def guarded(field: Field, guard: Guard | None = None) -> Field:
    """field(t, y) evaluated by a `Guard`, by default one of its own; a field that `takes_guard` is given it instead."""
    guard = guard or Guard()
    takes: Callable[..., torch.Tensor] = field
    f = partial(takes, guard=guard) if getattr(field, "takes_guard", False) else partial(guard, field)
    if hasattr(field, "parts"):  # what a splitting scheme asks a field for
        vars(f)["parts"] = tuple(guarded(part, guard) for part in field.parts)
    return f
