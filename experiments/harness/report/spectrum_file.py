"""Eigenvalues h*lambda from a file: a CSV, or the records of a run."""
import csv
import json
from pathlib import Path

import numpy as np

from experiments.harness.report.arms import merged_clouds
from odenets.errors import InputError


def read_spectrum(path):
    """A function from a scheme to its cloud {stage: (n, 2) real and imaginary parts}.

    Args:
        path: A records.jsonl, of which a scheme gets the nets trained with it, or all nets where there are none; or a CSV
            with a header that names the columns re and im, the same eigenvalues for all schemes.

    Raises:
        ValueError: The file cannot be read, or holds no eigenvalues; says where.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read --spectrum {str(path)!r} ({reason})") from None
    if not text.lstrip().startswith("{"):
        points = _read_csv(text, path)
        return lambda scheme: {"0": points}
    clouds = _read_clouds(text, path)
    every = merged_clouds([cloud for _, cloud in clouds])
    return lambda scheme: merged_clouds([cloud for name, cloud in clouds if name == str(scheme)]) or every


def _read_clouds(text, path):
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
        raise InputError(f"--spectrum {str(path)!r} holds {len(clouds)} records and no eigenvalues; name the records.jsonl "
                         "of a compare_schemes run")
    return clouds


def _read_csv(text, path):
    rows = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(rows, [])]
    if not {"re", "im"} <= {*header}:
        raise InputError(f"--spectrum {str(path)!r} must be a CSV whose first line names the columns re and im (h*lambda), or "
                         f"a records.jsonl; its first line has {', '.join(header)[:80] or 'nothing'}")
    points = []
    for row in filter(None, rows):
        try:
            points.append([float(row[header.index(name)]) for name in ("re", "im")])
        except (ValueError, IndexError):
            points.append([np.nan])
        if not np.isfinite(points[-1]).all():
            raise InputError(f"--spectrum {str(path)!r}, line {rows.line_num}: re and im must be finite numbers, "
                             f"got {','.join(row)[:80]}")
    if not points:
        raise InputError(f"--spectrum {str(path)!r} holds no eigenvalues below its header")
    return np.array(points)
