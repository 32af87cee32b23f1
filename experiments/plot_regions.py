"""Stability regions of the schemes, singly and as one sheet, with a table of what the theory says of each.

    python experiments/plot_regions.py --schemes all
    python experiments/plot_regions.py --schemes rk4,implicit --spectrum runs/compare/records.jsonl
    python experiments/plot_regions.py --table docs/schemes.md

About a second a scheme. Everything is computed from R(z), A and b; nothing is copied from a book, and the tests
compare the intervals with published ones.
"""

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

import odenets
import stability
from experiments.harness.command import Parser, parse_schemes, run_cli, tell
from experiments.harness.report import scheme_table
from experiments.harness.report.arms import Cloud
from experiments.harness.report.drawing import save
from experiments.harness.report.regions import region_sheet
from experiments.harness.report.spectrum_file import read_spectrum
from experiments.harness.run.folder import write_atomically
from experiments.harness.words import file_name
from odenets.errors import InputError
from stability.methods.regions import ROUNDING


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("plot_regions.py", __doc__)
    parser.add_argument("--schemes", help="comma-separated specs such as rk4,ie_skip(gamma=0.05), or all")
    parser.add_argument("--out", default="runs/regions", help="folder of the drawings")
    parser.add_argument(
        "--spectrum",
        metavar="FILE",
        help="eigenvalues h*lambda to draw on top: a CSV with columns re,im, or "
        "the records.jsonl of a run (a scheme's own nets, else all of them)",
    )
    parser.add_argument("--table", metavar="FILE", help="rewrite the table of all schemes between its markers in FILE")
    args = parser.parse_args(argv)
    if args.schemes is None and args.table is None:
        raise InputError("nothing to do: give --schemes (a list of specs, or all) to draw, or --table FILE to write its table")
    console = _console()
    if args.table is not None:
        _write_table(args.table, console)
    if args.schemes is not None:
        _draw(parse_schemes(args.schemes), args, console)
    return 0


def _draw(schemes: Sequence[odenets.Scheme], args: Namespace, console: Console) -> None:
    out = Path(args.out)
    cloud_for = read_spectrum(args.spectrum) if args.spectrum is not None else lambda scheme: {}
    _make_writable(out)
    drawable = [scheme for scheme in schemes if scheme.has_R]
    for scheme in schemes:
        if scheme not in drawable:
            console.print(f"{scheme}: skipped, its steps depend on the data and so it has no R(z)", highlight=False)
    if not drawable:
        raise InputError(f"none of the schemes {args.schemes!r} has a region to draw; choose others, or all")
    clouds = {str(scheme): cloud_for(scheme) for scheme in drawable}
    table = Table(title=scheme_table.LEGEND, box=SIMPLE_HEAD, pad_edge=False)
    for column in scheme_table.COLUMNS:
        table.add_column(column, no_wrap=column != "source")
    notes, growth = {}, []
    for scheme in track(drawable, description="regions", console=console, transient=True):
        cells = scheme_table.row(scheme)
        table.add_row(*cells)
        notes[str(scheme)] = f"order {cells[1]}, real {cells[5]}, imaginary {cells[6]}"
        growth.append(_growth(scheme, clouds[str(scheme)]))
        save(region_sheet([scheme], notes, clouds), out, file_name(str(scheme)))
    save(region_sheet(drawable, notes, clouds), out, "sheet")
    console.print(table)
    for line in filter(None, growth):
        console.print(line, highlight=False)
    tell(console, f"Drawings: {out.resolve()}, all of them on sheet.png")


def _growth(scheme: odenets.Scheme, cloud: Cloud) -> str | None:
    """A line on the spectrum under a scheme; None without one."""
    if not cloud:
        return None
    z = np.concatenate(list(cloud.values())) @ (1, 1j)
    modulus = stability.growth_factors(scheme, z)
    caveat = "" if scheme.analytic else " (R is not analytic: exact for normal Jacobians only)"
    return f"{scheme}: max |R| {modulus.max():.4g} over {z.size} values, |R| > 1 at {(modulus > 1 + ROUNDING).sum()}{caveat}"


def _write_table(path: str, console: Console) -> None:
    try:
        text = Path(path).read_text()
        write_atomically(path, scheme_table.replaced(text, path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot rewrite --table {path!r} ({reason})") from None
    tell(console, f"{path}: table of all schemes written")


def _make_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to --out {str(out)!r} ({error.strerror}); choose a folder that can be made and written"
        ) from None


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)  # a pipe has no width to respect


if __name__ == "__main__":
    raise SystemExit(main())
