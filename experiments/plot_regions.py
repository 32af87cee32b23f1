"""Stability regions of the schemes, singly and as one sheet, with a table of what the theory says of each.

    python experiments/plot_regions.py --schemes all

About a second a scheme. Everything is computed from R(z), A and b; nothing is copied from a book, and the tests
compare the intervals with published ones.
"""
import math
import tempfile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.harness.figures import save
from experiments.harness.options import Parser, parse_schemes, run_cli
from experiments.harness.regions import has_region, region_of, region_sheet

COLUMNS = ("scheme", "order", "stages", "implicit", "real", "imag.", "A", "L", "SSP", "alg.", "source")
TITLE = "|R| <= 1 on (-real, 0) and on i (-imag., imag.); A-, L- and algebraically stable; SSP coefficient"


@run_cli
def main(argv=None):
    """The script; returns its exit code."""
    parser = Parser(prog="plot_regions.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--schemes", required=True, help="comma-separated specs such as rk4,ie_skip(gamma=0.05), or "
                                                         "all")
    parser.add_argument("--out", default="runs/regions", help="folder of the drawings")
    args = parser.parse_args(argv)
    schemes, out, console = parse_schemes(args.schemes), Path(args.out), _console()
    _make_writable(out)
    drawable = [scheme for scheme in schemes if has_region(scheme)]
    for scheme in schemes:
        if scheme not in drawable:
            console.print(f"{scheme}: skipped, its steps depend on the data and so it has no R(z)", highlight=False)
    if not drawable:
        raise ValueError(f"none of the schemes {args.schemes!r} has a region to draw; choose others, or all")
    table = Table(title=TITLE, box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "source")
    notes = {}
    for scheme in track(drawable, description="regions", console=console, transient=True):
        region = region_of(scheme)
        intervals = _number(region.real_interval), _number(region.imaginary_interval)
        notes[str(scheme)] = f"order {_number(scheme.order)}, real {intervals[0]}, imaginary {intervals[1]}"
        table.add_row(str(scheme), _number(scheme.order), _number(scheme.stages), _word(scheme.implicit), *intervals,
                      _word(region.a_stable), _word(region.l_stable), _number(region.ssp),
                      _word(region.algebraically_stable), scheme.source)
        save(region_sheet([scheme], notes), out, _file_name(scheme))
    save(region_sheet(drawable, notes), out, "sheet")
    console.print(table)
    console.print(f"Drawings: {out.resolve()}, all of them on sheet.png", markup=False, highlight=False, soft_wrap=True)
    return 0


def _make_writable(out):
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to --out {str(out)!r} ({error.strerror}); choose a folder that can be made and "
                         "written") from None


def _console():
    console = Console()
    return console if console.is_terminal else Console(width=140)  # a pipe has no width to respect


def _number(value):
    return "\u2013" if value is None else "\u221e" if math.isinf(value) else f"{value:.4g}"


def _word(value):
    return {True: "yes", False: "no", None: "\u2013"}[value]


def _file_name(scheme):
    return str(scheme).replace("(", "_").replace(")", "").replace(",", "_")


if __name__ == "__main__":
    raise SystemExit(main())
