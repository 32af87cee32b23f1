"""Eigenvalues h*lambda from a file: a CSV, or the records of a run."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import odenets
from experiments.harness.report.arms import Cloud, merged_clouds
from odenets.errors import InputError


def read_spectrum(path: str | Path) -> Callable[[odenets.Scheme], Cloud]:
    """A function from a scheme to its cloud {stage: (n, 2) real and imaginary parts}.

    Args:
        path: A records.jsonl, of which a scheme gets the nets trained with it, or all nets where there are none; or a CSV
            with a header that names the columns re and im, the same eigenvalues for all schemes. Commas, semicolons (numbers
            may then have decimal commas), tabs or spaces separate, and a # may stand before the header; or one column of
            complex literals, 1-2j or (1-2j), with a header or without.

    Raises:
        ValueError: The file cannot be read, or holds no eigenvalues; says where.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with a byte-order mark or without
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read --spectrum {str(path)!r} ({reason})") from None
    if not text.lstrip().startswith("{"):
        points = _read_csv(text, path)
        return lambda scheme: {"0": points}
    clouds = _read_clouds(text, path)
    every = merged_clouds([cloud for _, cloud in clouds])
    return lambda scheme: merged_clouds([cloud for name, cloud in clouds if name == str(scheme)]) or every


def _read_clouds(text: str, path: str | Path) -> list[tuple[str, Mapping[str, Any]]]:
    """[(scheme, cloud)] of the lines of a records.jsonl."""
    clouds = []
    for line, content in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(content)
            name, cloud = record["scheme"], record.get("cloud") or {}
            usable = all(np.isfinite(points).all() for points in merged_clouds([cloud]).values())
        except (ValueError, TypeError, KeyError, AttributeError):
            usable = False
        if not usable:
            raise InputError(f"--spectrum {str(path)!r}, line {line}: not a record of a run (JSON with scheme and cloud)")
        clouds.append((name, cloud))
    if not merged_clouds([cloud for _, cloud in clouds]):
        raise InputError(
            f"--spectrum {str(path)!r} holds {len(clouds)} records and no eigenvalues; name the records.jsonl "
            "of a compare_schemes run"
        )
    return clouds


def _read_csv(text: str, path: str | Path) -> np.ndarray:
    """(n, 2) real and imaginary parts, from two columns or one of complex literals."""
    lines = [
        (number, line.strip().lstrip("#").strip())
        for number, line in enumerate(text.splitlines(), 1)
        if number == 1 or not line.lstrip().startswith("#")
    ]  # savetxt puts a # before the header
    lines = [(number, line) for number, line in lines if line]
    first = lines[0][1] if lines else ""
    delimiter = next((mark for mark in ";\t," if mark in first), None)
    header = [name.strip().lower() for name in _cells(first, delimiter)]
    if {"re", "im"} <= {*header}:
        return _points(
            lines[1:],
            path,
            lambda cells: [_real(cells[header.index(name)], delimiter) for name in ("re", "im")],
            delimiter,
            "re and im must be finite numbers",
        )
    if delimiter is None and first and not {"re", "im"} & {*header}:
        rows = lines if np.isfinite(_complex([first])).all() else lines[1:]
        return _points(rows, path, _complex, delimiter, "this must be a finite complex number such as -1+2j")
    raise InputError(
        f"--spectrum {str(path)!r} must be a CSV whose first line names the columns re and im (h*lambda), one "
        f"column of complex numbers such as -1+2j, or a records.jsonl; its first line has "
        f"{', '.join(header)[:80] or 'nothing'}"
    )


def _points(
    lines: list[tuple[int, str]],
    path: str | Path,
    parse: Callable[[list[str]], list[float]],
    delimiter: str | None,
    needed: str,
) -> np.ndarray:
    points = []
    for number, line in lines:
        try:
            points.append(parse(_cells(line, delimiter)))
        except (ValueError, IndexError):
            points.append([np.nan])
        if not np.isfinite(points[-1]).all():
            raise InputError(f"--spectrum {str(path)!r}, line {number}: {needed}, got {line[:80]}")
    if not points:
        raise InputError(f"--spectrum {str(path)!r} holds no eigenvalues below its header")
    return np.array(points)


def _cells(line: str, delimiter: str | None) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), []) if delimiter else line.split()


def _real(text: str, delimiter: str | None) -> float:
    # Where semicolons separate, commas are decimal: so do spreadsheets write in half of Europe.
    return float(text.replace(",", ".") if delimiter == ";" else text)


def _complex(cells: list[str]) -> list[float]:
    """[re, im] of a literal as Python, NumPy or MATLAB write it; [nan] where it is none."""
    literal = "".join(cells).lower().strip("()").replace("i", "j").replace("+-", "-")
    try:
        value = complex(literal)
    except ValueError:
        return [np.nan]
    return [value.real, value.imag]
