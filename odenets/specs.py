"""Specs, name(parameter=value,...): how schemes and fields are named on a command line and in records."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from odenets.errors import InputError

_SPEC = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\)\s*)?")


def read_name(spec: Any, kind: str, names: Iterable[str], aliases: Mapping[str, str]) -> tuple[str, str | None]:
    """(real name, text of the arguments or None) of a spec.

    Args:
        spec: The string.
        kind: What it names, for messages: "scheme", "field".
        names: The real names.
        aliases: {alias: real name}.

    Raises:
        ValueError: Malformed spec or unknown name.
    """
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    if not match:
        raise InputError(f"cannot read the {kind} {spec!r}; write name or name(parameter=value,...)")
    name = aliases.get(match["name"], match["name"])
    if name not in names:
        raise InputError(f"unknown {kind} {match['name']!r}; choose from {', '.join([*aliases, *names])}")
    return name, match["arguments"]


def read_arguments(spec: str, kind: str, text: str | None, declared: Mapping[str, Any]) -> dict[str, Any]:
    """{parameter: value} of "key=value,...", of the types of the declared defaults {parameter: default}; else ValueError."""
    given = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise InputError(f"cannot read {part!r} in the {kind} {spec!r}; write parameter=value")
        if key not in declared:
            valid = f"its parameters are {', '.join(declared)}" if declared else "it takes none"
            raise InputError(f"unknown parameter {key!r} in the {kind} {spec!r}; {valid}")
        if key in given:
            raise InputError(f"parameter {key!r} stands twice in the {kind} {spec!r}")
        given[key] = _convert(f"{key} in the {kind} {spec!r}", value, type(declared[key]))
    return given


def canonical(name: str, parameters: Mapping[str, tuple[Any, Any]]) -> str:
    """The spec with the parameters {name: (value, default)} that differ from their default, in their order."""
    changed = [f"{key}={value}" for key, (value, default) in parameters.items() if value != default]
    return f"{name}({','.join(changed)})" if changed else name


def _convert(where: str, value: str, kind: type) -> Any:
    if kind is str:
        return value
    if kind is type(None):  # a default that says nothing of the type: a number where it is one
        return next((found for read in (int, float) if (found := _tried(read, value)) is not None), value)
    if kind not in (bool, int, float):
        raise InputError(f"{where} is a {kind.__name__}, which cannot be written in parentheses")
    if kind is bool:
        if value in ("True", "False", "true", "false"):
            return value.lower() == "true"
        raise InputError(f"{where} must be true or false, got {value!r}")
    try:
        number = kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{where} must be {wanted}, got {value!r}") from None
    if number != number:
        raise InputError(f"{where} must be a number, got {value!r}")
    return number


def _tried(read: Callable[[str], Any], value: str) -> Any:
    try:
        return read(value)
    except ValueError:
        return None
