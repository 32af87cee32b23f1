"""How robust is this network, and can its robustness be believed? Any network that a run has trained, any of your own.

    python experiments/evaluate.py runs/compare --attacks pgd20,apgd100-ce,square1000 --audit
    python experiments/evaluate.py path/to/file.py:make_net --dataset cifar10 --data-dir data
    python experiments/evaluate.py "my.py:net(width=64)" --dataset my_images/ --image-size 32 --attacks fgsm,my.py:attack

A folder under runs/ receives config.json, records.jsonl, accuracy.csv, audit.csv, figures and report.html. What was killed
goes on with --resume after the last attack that had ended.
"""

import hashlib
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from rich.console import Console
from torch import nn

import odenets
from experiments.harness.command import (
    ATTACK_CHOICE,
    ATTACKS,
    DATA,
    RUN,
    Parser,
    parse_attacks,
    parse_choice,
    parse_numbers,
    parse_one,
    run_cli,
    tell,
)
from experiments.harness.defaults import defaults_of
from experiments.harness.options import add_image_options, add_run_options, check_out
from experiments.harness.report import evaluation as evaluation_report
from experiments.harness.run import measure as evaluation
from experiments.harness.run import own
from experiments.harness.run.cluster import Cluster, Nodes, add_cluster_options, connect, parse_place
from experiments.harness.run.config import EvaluationConfig
from experiments.harness.run.failures import Failure, forget, keep
from experiments.harness.run.folder import Run, saving
from experiments.harness.run.machine import provenance
from experiments.harness.run.places import Found, Here, Place, Screen, drive
from experiments.harness.run.runner import progress_bars
from experiments.harness.run.schema import Record, made_of
from experiments.harness.run.step import Step, do_step
from experiments.harness.run.subject import Subject, images_for, load_subjects, logits_of
from experiments.harness.statistics.estimates import middle
from experiments.harness.training import data
from experiments.harness.training.brought import FORMS
from experiments.harness.training.data import Split
from experiments.harness.words import count, radius
from odenets.errors import InputError
from stability.attacks.images import check_logits
from stability.attacks.threats import THREATS

AUDITS = ("none", "quick", "full")
FAILED = "measurement"  # the traceback of the one that ended a run


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    args = _parser().parse_args(argv)
    check_out(args)
    parse_choice(args.threat, "--threat", tuple(THREATS))
    parse_choice(args.audit, "--audit", AUDITS)
    attacks, (device, cluster) = parse_attacks(args.attacks), parse_place(args)
    if cluster:
        connect(cluster)
    here = "cpu" if cluster else device
    limit, images = (
        parse_one(value, option, int, 1)
        for value, option in ((args.test_limit, "--test-limit"), (args.audit_images, "--audit-images"))
    )
    subjects = load_subjects(args.network, here)
    dataset = _dataset(subjects, args.dataset)
    epsilons = _epsilons(args, dataset)
    size = parse_one(args.image_size, "--image-size", int, 1)
    loaded, size = images_for(subjects, dataset, args.data_dir, args.download, (None, limit), size)
    test = loaded.test.to(torch.device(here))
    for subject in subjects:
        _check_fits(subject, test)
    config = EvaluationConfig(
        network=args.network,
        weights={subject.name: digest(subject.net) for subject in subjects},
        dataset=dataset,
        data_dir=str(args.data_dir),
        download=args.download,
        test_limit=limit,
        image_size=size,
        data={"test": len(test)},
        own=own.digests(own.codes_of([args.network, dataset, *attacks])) | ({dataset: loaded.digest} if loaded.digest else {}),
        attacks=tuple(attacks),
        epsilons=tuple(epsilons),
        threat=args.threat,
        audit=args.audit,
        audit_epsilon=middle(sorted(epsilons)),
        audit_images=min(images, len(test)),
        device=device,
        **provenance(device),
    )
    console = Console()
    if loaded.note:
        tell(console, loaded.note)
    run = Run(args.out or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}", config.to_json(), args.resume)
    _measure(run, config, subjects, test, console, cluster)
    run.records = evaluation_report.merged(run.records, [subject.name for subject in subjects])
    run.write_tables()
    with saving(run.path("report.html")):
        evaluation_report.write(config, run.records, run.path("report.html"))
    evaluation_report.show(config, run.records, console, run.path("report.html"))
    return 0


def _parser() -> Parser:
    parser = Parser("evaluate.py", __doc__)
    parser.add_argument(
        "network",
        help="a checkpoint of a run, the folder of a run (all its checkpoints), package.module:NAME "
        "or path/to/file.py:NAME, NAME returning a torch.nn.Module",
    )
    parser.section(DATA)
    parser.add_argument(
        "--dataset", help=f"one of {', '.join(data.DATASETS)}, or {FORMS}; by default the one the network was trained on"
    )
    add_image_options(parser)
    parser.add_argument("--test-limit", help="use so many test images only")
    parser.section(ATTACKS)
    parser.add_argument("--attacks", default="pgd20,square200", help=f"of {ATTACK_CHOICE}")
    parser.add_argument("--epsilons", help="radii of the ball, pixel units, such as 0.1 or 8/255; default by data set")
    parser.add_argument("--threat", default="linf", help=f"the norm of the ball: {' or '.join(THREATS)}")
    parser.add_argument("--audit", nargs="?", const="quick", default="quick", help=f"one of {', '.join(AUDITS)}")
    parser.add_argument("--audit-images", default="64", help="test images that the audit looks at")
    parser.section(RUN)
    add_run_options(parser)
    add_cluster_options(parser)
    return parser


def _dataset(subjects: list[Subject], asked: str | None) -> str:
    """The data set to evaluate on: what the networks were trained on, for a user's own what is asked for."""
    known = {subject.meta["dataset"] for subject in subjects if subject.meta}
    asked = asked and data.named(asked, "--dataset")
    if not known and asked is None:
        raise InputError(
            f"--dataset is needed for a network of your own; choose from {', '.join(data.DATASETS)}, or give {FORMS}"
        )
    if len(known) > 1:
        raise InputError(f"these checkpoints saw different data sets ({', '.join(sorted(known))}); evaluate each alone")
    if asked is not None and known - {asked}:
        raise InputError(f"{subjects[0].text} was trained on {known.pop()}, and --dataset says {asked}; leave --dataset out")
    return asked or known.pop()


def _epsilons(args: Namespace, dataset: str) -> list[float]:
    if args.epsilons is not None:
        return parse_numbers(args.epsilons, "--epsilons", float, 0)
    return defaults_of(dataset)[args.threat]


def _check_fits(subject: Subject, test: Split) -> None:
    """Refuse a network that cannot take these images, gives NaN, or knows fewer classes than there are labels."""
    x, y = test.images[:64], test.labels
    logits = logits_of(subject.net, x, subject.name)
    try:
        # Of all labels the extreme ones decide; they stand in for those of these images.
        check_logits(logits, torch.cat([y.aminmax()[index][None] for index in (0, 1)]).repeat(len(x))[: len(x)])
    except InputError as error:
        raise InputError(f"{subject.name}: {error}") from error


def digest(net: nn.Module) -> str:
    """SHA-256 of the weights: a run must not go on with others."""
    digest = hashlib.sha256()
    for name, value in chain(net.named_parameters(), net.named_buffers()):
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _measure(
    run: Run, config: EvaluationConfig, subjects: list[Subject], test: Split, console: Console, cluster: Cluster | None
) -> None:
    """Measure what the records lack, one line a measurement, so that a killed run loses those that are under way at most."""
    try:
        done = {evaluation_report.key(record): record for record in run.records}
    except ValueError as error:
        raise InputError(
            f"{run.path('records.jsonl')} is damaged: not every line is a measurement of evaluate.py; choose another --out"
        ) from error
    run.records = list(done.values())  # a line that stands twice counts once
    named = {subject.name: subject for subject in subjects}
    steps = [Step(subject.name, *step) for subject in subjects for step in _plan(subject.net, config)]
    todo = [step for step in steps if tuple(step) not in done]
    if todo:
        what = f"{count(len(todo), 'measurement')} to make of {count(len(subjects), 'network')}"
        tell(console, f"{what}, on {count(len(test), 'test image')} of {config.dataset}")
    with progress_bars(console) as progress:
        overall, following = progress.add_task("measurements", total=len(todo)), iter(todo)

        def ended(step: Step, found: Found, failure: Failure | None) -> None:
            if failure:
                told = keep(failure, run.folder, FAILED)
                at = f" at {radius(step.epsilon)}" if step.epsilon else ""
                raise InputError(
                    f"{step.network} fails in {step.attack}{at}: {told}; what was measured before is in {run.folder}"
                )
            found["made"] = made_of({"measurement": found["made"]})
            run.append([replace(_description(named[step.network], config), **found)])
            forget(run.folder, FAILED)
            if not console.is_terminal:
                tell(console, f"{step.name}: done ({len(run.records) - len(done)} of {len(todo)})")
            progress.advance(overall)

        def supply(step: Step) -> tuple[str, Callable[[], tuple[nn.Module, Split]]]:
            return step.network, lambda: (named[step.network].net, test)

        place: Place[Step]
        if cluster:
            trained = [str(s.meta.get(key)) for s in subjects if s.meta for key in ("model", "scheme", "field")]
            parts = [config.network, *config.attacks, *trained]
            place = Nodes(
                partial(do_step, config), Screen(progress), cluster, run.path("checkpoints"), supply, own.codes_of(parts)
            )
        else:
            place = Here(
                lambda step, report, say: do_step(config, None, step, report, say, supply(step)[1]()), Screen(progress)
            )
        drive(place, lambda: next(following, None), ended)
    position = {tuple(step): index for index, step in enumerate(steps)}
    run.records.sort(key=lambda record: position[evaluation_report.key(record)])  # nodes end in any order


def _plan(net: nn.Module, config: EvaluationConfig) -> list[tuple[str, float, str]]:
    plan = evaluation.attack_plan(net, config.attacks, config.epsilons)
    return plan + [("audit", config.audit_epsilon, "exact")] * (config.audit != "none")


def _description(subject: Subject, config: EvaluationConfig) -> Record:
    """A record of a network without any measurement; of a user's own what its stages tell, where it has any."""
    stage = next(iter(odenets.stages(subject.net).values()), None)
    meta = subject.meta or {
        "model": subject.name,
        "training": "unknown",
        "seed": 0,
        "scheme": str(stage.scheme) if stage else "none",
        "substeps": stage.substeps if stage else 1,
    }
    known = {key: meta[key] for key in ("model", "training", "seed", "scheme", "substeps")}
    return Record(**known, network=subject.name, trained_substeps=known["substeps"], dataset=config.dataset)


if __name__ == "__main__":
    raise SystemExit(main())
