"""Is a more stable scheme a more robust network? Train every scheme alike, attack every network honestly, compare in pairs.

    python experiments/compare_schemes.py --schemes explicit,implicit
    python experiments/compare_schemes.py --schemes "explicit,ie_skip(gamma=0.05)" --training pgd --budget 1h --out runs/pgd
    python experiments/compare_schemes.py --schemes explicit,my.py:SCHEME --model my.py:net --dataset my_images/ --image-size 32

Every scheme starts from the same weights, sees the same batches and is judged on the same test images. A folder under runs/
receives config.json, records.jsonl, accuracy.csv, stability.csv, audit.csv, figures, checkpoints and report.html.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import odenets
from experiments.harness.command import COMPARED, Parser, parse_fields, parse_numbers, run_cli
from experiments.harness.conduct import conduct
from experiments.harness.options import add_arguments, make_config
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig
from odenets.errors import InputError


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("compare_schemes.py", __doc__)
    add_arguments(parser)
    parser.section(COMPARED)
    parser.add_argument("--substeps", default="1", help="steps for each block; the step size is 1 / substeps")
    parser.add_argument(
        "--fields",
        default="residual",
        help="comma-separated specs of what is integrated; every scheme is "
        f"trained with each: {', '.join(odenets.list_fields())}",
    )
    args = parser.parse_args(argv)
    substeps = parse_numbers(args.substeps, "--substeps", int, 1)
    if len(substeps) > 1:
        raise InputError(f"--substeps takes one whole number here, got {args.substeps!r}; sweep_steps.py compares several")
    config = make_config(args, "compare_schemes", substeps, parse_fields(args.fields))
    return conduct(config, cases_of, args)


def cases_of(config: RunConfig, seeds: Iterable[int]) -> list[Case]:
    """The nets of a run of so many seeds, in the order of its report."""
    nets = product(config.fields, config.schemes, seeds)
    (substeps,) = config.substeps
    return [Case(scheme, substeps, seed, field=field) for field, scheme, seed in nets]


if __name__ == "__main__":
    raise SystemExit(main())
