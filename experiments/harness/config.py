"""Settings stated once: a frozen dataclass whose fields carry default, range and help; its options are made from them."""

import types
import typing
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterable
from dataclasses import MISSING, field, fields
from typing import Any

from experiments.harness.command import parse_choice, parse_one


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    minimum: float | None = None,
    implied: str | None = None,
) -> Any:
    """A field of a settings class, and what the command line has to know of it.

    Args:
        default: Where nobody says otherwise.
        help: In the words of --help.
        choices: The valid names.
        minimum: The least valid number.
        implied: What the default depends on, in words: on the command line the caller supplies it then.
    """
    known = {"help": help, "choices": None if choices is None else tuple(choices), "minimum": minimum, "implied": implied}
    return field(default=default, metadata=known)


def add_options(parser: ArgumentParser, settings: type) -> None:
    """An option --some-name for each field some_name that `option` made."""
    for known in fields(settings):
        if not known.metadata:
            continue
        meta, default = known.metadata, None if known.default in (None, MISSING) else known.default
        text = meta["help"] if meta["choices"] is None else f"{meta['help']}, one of {', '.join(meta['choices'])}".lstrip(", ")
        text += f"; default: {meta['implied']}" if meta["implied"] else ""
        name = _option(known.name)
        if _kind(settings, known.name) is bool:
            parser.add_argument(name, action=BooleanOptionalAction, default=default, help=text)
        else:
            parser.add_argument(name, default=None if meta["implied"] or default is None else str(default), help=text)


def read_options(args: Namespace, settings: type) -> dict[str, Any]:
    """{field: value} of the options that were given or have a default of their own.

    Raises:
        ValueError: Names the option, what it got and what is valid.
    """
    found = {}
    for known in fields(settings):
        if not known.metadata:
            continue
        value, kind, meta = getattr(args, known.name), _kind(settings, known.name), known.metadata
        if meta["choices"] is not None and value is not None:
            parse_choice(value, _option(known.name), meta["choices"])
        elif kind in (int, float):
            value = parse_one(value, _option(known.name), kind, meta["minimum"])
        if value is not None:
            found[known.name] = value
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(settings: type, name: str) -> type:
    """The type of a field, of an optional one what it is where it is not None."""
    hint = typing.get_type_hints(settings)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in hint.__args__ if part is not type(None))
    return hint
