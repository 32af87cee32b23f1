"""What the theory says of each scheme, as one table: in the terminal, and between two markers of docs/schemes.md."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import odenets
from experiments.harness.report.regions import region_of
from odenets.errors import InputError
from odenets.schemes.catalogue import ALIASES
from odenets.schemes.solving import SOLVE_DEFAULTS

COLUMNS = ("scheme", "order", "stages", "f", "implicit", "real", "imag.", "A(\u03b1)", "L", "SSP", "alg.", "source")
LEGEND = (
    "f: its evaluations in a step (varies: a solve or an error control decides). |R| <= 1 on (-real, 0), on i (-imag., "
    "imag.) and in the sector of half-angle \u03b1. L: L-stable. SSP: coefficient of strong stability. alg.: "
    "algebraically stable"
)
START, END = "<!-- schemes: written by experiments/plot_regions.py --table docs/schemes.md -->", "<!-- end of schemes -->"


def row(scheme: odenets.Scheme) -> tuple[str, ...]:
    """The cells of a scheme, text, in the order of `COLUMNS`; dashes where nothing is defined."""
    region = region_of(scheme) if scheme.has_R else None
    read = ("real_interval", "imaginary_interval", "a_alpha", "l_stable", "ssp", "algebraically_stable")
    real, imaginary, alpha, l_stable, ssp, algebraic = (getattr(region, name, None) for name in read)
    return (
        str(scheme),
        number(scheme.order),
        number(scheme.stages),
        "varies" if scheme.evaluations is None else number(scheme.evaluations),
        _word(scheme.implicit),
        number(real),
        number(imaginary),
        "\u2013" if alpha is None else f"{number(alpha)}\u00b0",
        _word(l_stable),
        number(ssp),
        _word(algebraic),
        scheme.source,
    )


def number(value: float | None) -> str:
    """Four digits, the sign of infinity, or a dash for None."""
    return "\u2013" if value is None else "\u221e" if math.isinf(value) else f"{value:.4g}"


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "\u2013"}[value]


def markdown() -> str:
    """The table of the whole catalogue with its aliases and parameters, as Markdown."""
    schemes = [odenets.get_scheme(name) for name in odenets.list_schemes()]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * 3 + "---|" + "---:|" * 3 + "---|---:|---|---|"]
    for scheme in schemes:
        own = _assignments({key: value for key, value in _defaults(scheme).items() if key not in SOLVE_DEFAULTS})
        name = f"`{scheme}({own})`" if own else f"`{scheme}`"
        lines.append("| " + " | ".join((name, *row(scheme)[1:])) + " |")
    targets = {name: [alias for alias in ALIASES if ALIASES[alias] == name] for name in ALIASES.values()}
    aliases = "; ".join(f"{' and '.join(f'`{alias}`' for alias in found)} for `{name}`" for name, found in targets.items())
    lines += ["", LEGEND + ".", "", f"Aliases: {aliases}.", ""]
    groups: dict[str, list[str]] = {}
    for scheme in schemes:
        shared = _assignments({key: value for key, value in _defaults(scheme).items() if key in SOLVE_DEFAULTS})
        groups.setdefault(shared, []).append(scheme.name)
    groups.pop("")
    lines += ["Parameters stand with their defaults in the table (rounded). What solves takes besides:"]
    lines += [f"- `{shared}`: {', '.join(names)}" for shared, names in groups.items()]
    return "\n".join(lines)


def _defaults(scheme: odenets.Scheme) -> dict[str, Any]:
    return {key: default for key, (_, default) in scheme.parameters.items()}


def _assignments(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={number(value) if isinstance(value, float) else value}" for key, value in parameters.items())


def replaced(text: str, path: str | Path) -> str:
    """A page's text with the table of today between its markers; ValueError where they do not stand once, in order."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end or START in rest or END in before + after:
        raise InputError(f"{path} must hold the line {START!r} once, and below it the line {END!r}")
    return f"{before}{start}\n{markdown()}\n{end}{after}"
