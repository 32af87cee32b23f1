"""Accuracy and robustness against the number of solver steps: the same weights run with more steps, and retrained with them.

    python experiments/sweep_steps.py --schemes explicit,implicit --substeps 1,2,4,8

One seed by default: cost grows with the substeps, about 10 minutes on 2 cores for the line above.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from experiments.harness.command import Parser, parse_numbers, run_cli
from experiments.harness.experiment import add_arguments, conduct, make_config
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser(prog="sweep_steps.py", description=__doc__.split("\n\n")[0])
    add_arguments(parser, seeds="0")
    parser.add_argument("--substeps", default="1,2,4,8", help="numbers of steps for each block; the step size is 1 / substeps")
    args = parser.parse_args(argv)
    config = make_config(args, "sweep_steps", sorted(parse_numbers(args.substeps, "--substeps", int, 1)))
    return conduct(config, _cases, args)


def _cases(config: RunConfig, seeds: Iterable[int]) -> list[Case]:
    first, *others = config.substeps
    nets = product(config.schemes, config.substeps, seeds)
    return [Case(scheme, steps, seed, tuple(others) if steps == first else ()) for scheme, steps, seed in nets]


if __name__ == "__main__":
    raise SystemExit(main())
