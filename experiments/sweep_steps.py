"""Accuracy and robustness against the number of solver steps: the same weights run with more steps, and retrained with them.

    python experiments/sweep_steps.py --schemes explicit,implicit --substeps 1,2,4,8

One seed by default: cost grows with the substeps, about 10 minutes on 2 cores for the line above.
"""

from experiments.harness.command import Parser, parse_numbers, run_cli
from experiments.harness.experiment import add_arguments, conduct, make_config
from experiments.harness.run.case import Case


@run_cli
def main(argv=None):
    """The script; returns its exit code."""
    parser = Parser(prog="sweep_steps.py", description=__doc__.split("\n\n")[0])
    add_arguments(parser, seeds="0")
    parser.add_argument("--substeps", default="1,2,4,8", help="numbers of steps for each block; the step size is 1 / substeps")
    args = parser.parse_args(argv)
    config = make_config(args, "sweep_steps", sorted(parse_numbers(args.substeps, "--substeps", int, 1)))
    first, *others = config.substeps
    cases = [
        Case(scheme, substeps, seed, tuple(others) if substeps == first else ())
        for scheme in config.schemes
        for substeps in config.substeps
        for seed in config.seeds
    ]
    return conduct(config, cases, args)


if __name__ == "__main__":
    raise SystemExit(main())
