"""The comparison of Li, He and Lin (ICML 2020) in one command: ResNet against IE-ResNet, read in their way and honestly.

    python experiments/reproduce_ie_skips.py --scale cpu
    python experiments/reproduce_ie_skips.py --scale gpu --datasets cifar10 --device cuda
    python experiments/reproduce_ie_skips.py --scale smoke --out runs/ie-skips --resume

Both nets have the same parameters, initial weights and batches; natural and adversarial training follow the authors' protocol,
with every deviation named. FGSM, PGD-20 and PGD-100 follow the detached gradient, as the authors' code does, and the exact one;
there an ensemble and an audit come on top. Each data set and training is a run of compare_schemes.py in a folder of its own
under --out; beside them lie reproduction.html and reproduction.csv. No figure here is the paper's.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.compare_schemes import cases_of
from experiments.harness.command import COMPARED, Parser, conclude, parse_choice, parse_names, run_cli, tell
from experiments.harness.conduct import conduct
from experiments.harness.options import add_arguments, check_out, make_config
from experiments.harness.report import reproduction as report
from experiments.harness.report.arms import comparison
from experiments.harness.run.case import Case
from experiments.harness.run.cluster import parse_place, workers_on
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import read_run, saving, write_atomically
from experiments.harness.run.forecast import forecast
from experiments.harness.training.data import DATASETS
from experiments.harness.words import count, duration
from odenets.errors import InputError

TRAININGS = {"natural": "standard", "adversarial": "summed"}
# Theirs: SGD with momentum 0.9, rate 0.1, decay 5e-4, batches of 128, a tenth after epochs 100, 125 and 140 of 150, one epoch
# on clean images in which the rate rises; training by the sum of both losses, PGD-3 at 8/255 by steps of 2/255, along the
# detached gradient.
PROTOCOL = {
    "schemes": "explicit,ie_skip(gamma=0.1,iterations=1)",
    "train_gradient": "detached",
    "optimizer": "sgd",
    "schedule": "multistep",
    "batch_size": "128",
    "warmup_epochs": "1",
    "clean_epochs": "1",
    "train_steps": "3",
    "audit": "first",
}
AUGMENT = {"cifar10": "rotated", "cifar100": "rotated"}
# Natural nets break at 8/255 whatever they are; smaller radii tell them apart.
CIFAR = {"natural": "1/255,2/255,8/255", "adversarial": "4/255,8/255,16/255"}
RADII = {
    "digits": {"natural": "0.05,0.1,0.15", "adversarial": "0.05,0.1,0.15"},
    "mnist": {"natural": "0.05,0.1,0.2", "adversarial": "0.1,0.2,0.3"},
    "fashion-mnist": CIFAR,
    "cifar10": CIFAR,
    "cifar100": CIFAR,
}


@dataclass(frozen=True)
class Scale:
    """What a machine can carry. ensemble: the attacks beside those of the paper."""

    datasets: tuple[str, ...]
    model: str
    epochs: str
    seeds: str
    ensemble: str = "apgd50-ce,apgd50-t,square1000"
    train_limit: str | None = None
    test_limit: str | None = None


SCALES = {
    "smoke": Scale(("digits",), "small", "2", "0", "apgd2-ce,square5", "128", "24"),
    "cpu": Scale(("mnist", "cifar10"), "resnet18", "15", "0,1,2", train_limit="6000", test_limit="300"),
    "gpu": Scale(("mnist", "cifar10", "cifar100"), "resnet18", "150", "0,1,2"),
}


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("reproduce_ie_skips.py", __doc__)
    parser.section(COMPARED)
    parser.add_argument(
        "--scale", default="cpu", help=f"one of {', '.join(SCALES)}: seconds, a night on a few cores, hours on one GPU"
    )
    parser.add_argument("--datasets", help=f"of {', '.join(DATASETS)}; default: by scale")
    parser.add_argument("--trainings", default=",".join(TRAININGS), help=f"of {', '.join(TRAININGS)}")
    add_arguments(parser)
    # What the user does not name is the protocol's, or the scale's: None until `_arguments`.
    parser.set_defaults(**dict.fromkeys(_usual(SCALES["smoke"], "digits", "natural")), dataset=None, training=None)
    args = parser.parse_args(argv)
    parse_choice(args.scale, "--scale", SCALES)
    check_out(args)
    for option in ("dataset", "training"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} stands for one; here it is --{option}s, which takes several")
    datasets = parse_names(args.datasets or ",".join(SCALES[args.scale].datasets), "--datasets", DATASETS)
    trainings = parse_names(args.trainings, "--trainings", TRAININGS)
    out, console = Path(args.out or f"runs/ie-skips-{time.strftime('%Y%m%d-%H%M%S')}"), Console()
    runs = [_arguments(args, dataset, training, out) for dataset in datasets for training in trainings]
    configs = [make_config(own, "compare_schemes", (1,)) for own in runs]
    _foretell(console, runs, configs)
    code = 0
    for index, (own, config) in enumerate(zip(runs, configs), 1):
        console.print(f"{index} of {len(runs)}: {Path(own.out).name}", highlight=False)
        code = max(code, conduct(config, cases_of, own))
    found = [comparison(*read_run(Path(own.out))) for own in runs]
    write_atomically(out / "reproduction.csv", report.table(found).csv())
    with saving(out / "reproduction.html"):
        report.write_reproduction(found, out)
    wide = report.summary(found).show(console, "ResNet and IE-ResNet, right answers in %")
    conclude(wide, report.sentences(found), "Page", out / "reproduction.html")
    return code


def _usual(scale: Scale, dataset: str, training: str) -> dict[str, str | None]:
    """What holds where the user says nothing."""
    return {
        **PROTOCOL,
        "model": scale.model,
        "epochs": scale.epochs,
        "seeds": scale.seeds,
        "train_limit": scale.train_limit,
        "test_limit": scale.test_limit,
        "augment": AUGMENT.get(dataset, "none"),
        "epsilons": RADII[dataset][training],
        "attacks": ",".join((*report.SPECS.values(), scale.ensemble)),
    }


def _arguments(args: Namespace, dataset: str, training: str, out: Path) -> Namespace:
    """The options of compare_schemes.py for one run."""
    usual = _usual(SCALES[args.scale], dataset, training)
    own = {key: usual[key] if key in usual and value is None else value for key, value in vars(args).items()}
    own |= {"dataset": dataset, "training": TRAININGS[training], "out": str(out / f"{dataset}-{training}")}
    return Namespace(**own | {"smoke": args.smoke or args.scale == "smoke"})


def _foretell(console: Console, runs: Sequence[Namespace], configs: Sequence[RunConfig]) -> None:
    """Say how long the runs will take that have not ended yet."""
    for own, config in zip(runs, configs):
        cases = _left(Path(own.out), cases_of(config, config.seeds))
        if cases:
            workers = workers_on(parse_place(own)[1], config.workers, config.device, config.model)
            with console.status("timing a step of each net"):
                seconds = forecast(config, cases).seconds(workers)
            nets, whole = count(len(cases), "net"), duration(seconds)
            tell(console, f"{Path(own.out).name}: {nets}, about {whole} on {count(workers, 'worker')}")


def _left(folder: Path, cases: list[Case]) -> list[Case]:
    """The cases that a run's folder has no record of."""
    try:
        known = {record.key for record in read_run(folder)[1]}
    except InputError:  # no run there yet, or one that is refused once it is its turn
        return cases
    return [case for case in cases if case.key not in known]


if __name__ == "__main__":
    raise SystemExit(main())
