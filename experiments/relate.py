"""Does the stability of a scheme go with robustness? Every predictor against exact-gradient robust accuracy, over many schemes.

    python experiments/relate.py --schemes all --seeds 0,1,2,3,4,5,6,7 --training standard,pgd --out runs/relation
    python experiments/relate.py --schemes explicit,heun,rk4,implicit,my.py:SCHEME --predictors my.py:predictor
    python experiments/relate.py --runs runs/compare runs/pgd --out runs/both

Each training is a run of compare_schemes.py in a folder of its own under --out, and can be resumed as one. --runs relates
finished ones. --out receives relation.html, relation.csv and figures.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import odenets
from experiments.compare_schemes import cases_of
from experiments.harness.command import (
    COMPARED,
    RUN,
    Parser,
    conclude,
    parse_fields,
    parse_names,
    parse_schemes,
    run_cli,
    show_table,
)
from experiments.harness.conduct import conduct
from experiments.harness.options import add_arguments, make_config
from experiments.harness.report.study import sentences, study, table, write_study
from experiments.harness.run.folder import read_run, saving, write_atomically
from experiments.harness.statistics.association import FEWEST
from experiments.harness.training.losses import METHODS
from odenets.errors import InputError


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("relate.py", __doc__)
    add_arguments(parser)
    parser.section(COMPARED)
    parser.add_argument(
        "--fields", default="residual", help=f"comma-separated specs of what is integrated: {', '.join(odenets.list_fields())}"
    )
    parser.section(RUN)
    parser.add_argument(
        "--runs", nargs="+", metavar="FOLDER", help="relate these runs of compare_schemes.py, and train nothing"
    )
    args = parser.parse_args(argv)
    out = Path(args.out or f"runs/relation-{time.strftime('%Y%m%d-%H%M%S')}")
    folders, code = [Path(folder) for folder in args.runs or ()], 0
    if not folders:
        trainings = parse_names(args.training, "--training", METHODS)
        if len(parse_schemes(args.schemes)) < FEWEST:
            raise InputError(f"a relation between schemes needs {FEWEST} of them at least, got --schemes {args.schemes}")
        for training in trainings:
            args.training, args.out = training, str(out / training)
            config = make_config(args, "compare_schemes", (1,), parse_fields(args.fields))
            code = max(code, conduct(config, cases_of, args))
            folders.append(out / training)
    found = study([read_run(folder) for folder in folders])
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)
    whole = table(found)
    with saving(out / "relation.html"):
        write_study(found, out)
    write_atomically(out / "relation.csv", whole.csv())
    rows = [(*row[:6], *row[-2:]) for row in (whole.columns, *whole.rows)]
    wide = show_table(Console(), "Predictors of robustness", rows, keys=1)
    conclude(wide, sentences(found), "Page", out / "relation.html")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
