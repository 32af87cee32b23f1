"""What do the number of solver steps, and the scheme, do to weights that are there? And to training?

    python experiments/sweep_steps.py
    python experiments/sweep_steps.py --read trained --substeps 1,2,4
    python experiments/sweep_steps.py --read finer --schemes explicit,rk4,implicit --substeps 1,2,4,8,16

--read finer: nets trained with the fewest of --substeps are run with all of them. Do they converge to their differential
equation, at which rate, and what happens to clean and robust accuracy on the way? --read trained: nets are trained with each
number of steps. --read swap: nets are trained with each scheme and run with every other. Every net is attacked as it is run,
and judged by a cold solve. The default asks the first and the last of explicit and implicit Euler with three seeds, one
radius and 1, 2 and 4 steps: six nets, about ten minutes on two quiet cores. --read trained trains twelve more, half an hour.

--out receives what compare_schemes.py writes, steps.csv and convergence.csv; --resume goes on, with further --seeds too.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from rich.console import Console

from experiments.harness.command import COMPARED, Parser, parse_names, parse_numbers, parse_schemes, run_cli, tell
from experiments.harness.conduct import conduct
from experiments.harness.defaults import defaults_of
from experiments.harness.options import add_arguments, make_config
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig
from experiments.harness.statistics import middle
from odenets.errors import InputError
from stability.attacks.threats import THREATS

READS = {
    "finer": "weights of the fewest steps, run with more",
    "trained": "trained with each number of steps",
    "swap": "trained with one scheme, run with every other",
}
SWAPPED = "explicit,midpoint,rk4,ie_skip,implicit"  # schemes, where a swap is asked for and none is named


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("sweep_steps.py", __doc__)
    add_arguments(parser)
    parser.section(COMPARED)
    parser.add_argument("--substeps", help="numbers of steps for each block; the step size is 1 / substeps; default: 1,2,4")
    choices = ", ".join(f"{name} ({what})" for name, what in READS.items())
    parser.add_argument("--read", help=f"of {choices}; default: finer,swap, of one scheme finer")
    parser.set_defaults(schemes=None, audit=None)
    args = parser.parse_args(argv)
    alone = bool(args.schemes) and len(parse_schemes(args.schemes)) == 1
    reads = parse_names(("finer" if alone else "finer,swap") if args.read is None else args.read, "--read", READS)
    several = bool({"finer", "trained"} & {*reads})
    args.schemes = args.schemes or ("explicit,implicit" if several else SWAPPED)
    steps = sorted(
        parse_numbers(("1,2,4" if several else "1") if args.substeps is None else args.substeps, "--substeps", int, 1)
    )
    if "finer" in reads and len(steps) < 2:
        raise InputError(f"--read finer compares numbers of steps, and --substeps names one ({steps[0]})")
    if args.epsilons is None and args.threat in THREATS:
        args.epsilons = str(middle(defaults_of(args.dataset)[args.threat]))  # attacks at every number of steps are dear
    args.audit = args.audit or "cheap"
    config = make_config(args, "sweep_steps", steps, reads=reads)
    if "swap" in reads and len(config.schemes) < 2:
        raise InputError(f"--read swap runs weights with another scheme, and --schemes names one ({config.schemes[0]})")
    asked = "; ".join(READS[read] for read in config.reads)
    tell(Console(), f"{asked[0].upper()}{asked[1:]}.")
    return conduct(config, cases_of, args)


def cases_of(config: RunConfig, seeds: Iterable[int]) -> list[Case]:
    """The nets of a sweep: those of the fewest steps are run otherwise too."""
    first, *finer = config.substeps
    trained = config.substeps if "trained" in config.reads else (first,)
    again = tuple(finer) if "finer" in config.reads else ()

    def case(scheme: str, steps: int, seed: int) -> Case:
        others = tuple(other for other in config.schemes if other != scheme) if "swap" in config.reads else ()
        return Case(scheme, steps, seed, again, rerun_as=others) if steps == first else Case(scheme, steps, seed)

    return [case(*net) for net in product(config.schemes, trained, seeds)]


if __name__ == "__main__":
    raise SystemExit(main())
