"""What can be proven of a network: certified accuracy against the radius, and attacks against the certificate.

    python experiments/certify.py runs/compare/checkpoints/NAME.pt
    python experiments/certify.py my.py:net --dataset my_images/ --image-size 16 --norm linf
    python experiments/certify.py --train --dataset mnist --data-dir data --seconds 60 --seeds 0,1,2,3,4

With --train every field is trained with every scheme with which its steps are proven to contract, at equal parameters and for
equal seconds. A folder under runs/ receives config.json, records.jsonl, certificates.csv, tables, figures,
checkpoints and report.html. What was killed goes on with --resume after the last step that had ended.
"""

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import odenets
import stability
from experiments.evaluate import digest
from experiments.harness.command import (
    ATTACK_CHOICE,
    ATTACKS,
    COMPARED,
    DATA,
    RUN,
    Parser,
    parse_attacks,
    parse_choice,
    parse_device,
    parse_fields,
    parse_numbers,
    parse_one,
    parse_schemes,
    run_cli,
    split_top_level,
    tell,
)
from experiments.harness.config import add_options
from experiments.harness.defaults import defaults_of
from experiments.harness.options import add_image_options, add_run_options, add_smoke, check_out
from experiments.harness.report import certificates as report
from experiments.harness.run import certified, own, proofs, shelf
from experiments.harness.run.case import TRAINING, Case, Task, checkpoint_of, run_task
from experiments.harness.run.certified import ENSEMBLE, CertifyConfig, Line, Pair
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import Run, read_config, saving
from experiments.harness.run.machine import provenance
from experiments.harness.run.pairs import pairs_of
from experiments.harness.run.runner import progress_bars
from experiments.harness.run.subject import images_for, load_subject, load_subjects, logits_of
from experiments.harness.training import data
from experiments.harness.training.brought import FORMS
from experiments.harness.training.settings import TrainingSettings, training_settings
from experiments.harness.words import count, duration
from odenets.errors import InputError
from stability.attacks.threats import THREATS

RADII = {
    "l2": {"mnist": [0.5, 1.0, 1.58], "fashion-mnist": [0.5, 1.0, 1.58], "cifar10": [36 / 255, 72 / 255, 108 / 255]},
    "linf": {"mnist": [0.05, 0.1, 0.2]},
}
MODELS = {"l2": "odenets:certifiable_small", "linf": "odenets:certifiable_linf"}  # take size and width beside what all take
FIELDS = "gradient_flow,monotone,skew"
SCHEMES = "explicit,splitting(tol=0.01),implicit(tol=0.01),implicit_midpoint(tol=0.01)"
HUNTED = 100  # images that are hunted together: what a kill loses at most
SMOKE: dict[str, Any] = {"train_limit": 128, "test_limit": 12, "attack_images": 6, "attacks": ("pgd2",), "hunted": 4}


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    args = _parser().parse_args(argv)
    check_out(args)
    if bool(args.networks) == args.train:
        raise InputError("give networks to certify, or --train")
    config, images = _config(args)
    run = Run(args.out or f"runs/certify-{time.strftime('%Y%m%d-%H%M%S')}", config.to_json(), args.resume, Line)
    config = replace(config, seeds=tuple(run.config["seeds"]))
    console = Console()
    if images.note:
        tell(console, images.note)
    _work(run, config, images.test, console)
    nets = certified.by_pair(run.records)
    with saving(run.folder):
        report.write(config, nets, run.folder)
    report.show(config, nets, console)
    tell(console, f"Report: {run.path('report.html').resolve()}")
    return 0


def _parser() -> Parser:
    parser = Parser("certify.py", __doc__)
    parser.add_argument(
        "networks", nargs="*", help="checkpoints or folders of runs, package.module:NAME or path/to/file.py:NAME"
    )
    parser.section(COMPARED)
    parser.add_argument("--train", action="store_true", help="train nets of every field with every scheme that is proven")
    parser.add_argument("--fields", default=FIELDS, help="comma-separated specs of fields with proofs, for --train")
    parser.add_argument("--schemes", default=SCHEMES, help="comma-separated specs of schemes, for --train")
    parser.add_argument(
        "--model",
        help="FILE.py:NAME; where it has parameters size and width they are chosen by the images and --parameters; default by "
        f"norm: {', '.join(f'{model} for {norm}' for norm, model in MODELS.items())}",
    )
    parser.add_argument("--parameters", help="of each net, about; default: those of the first field at the model's own width")
    parser.add_argument("--seconds", default="60", help="of each training: epochs are chosen by timing some batches")
    parser.add_argument("--seeds", default="0", help="initial weights and order of batches, the same for all nets")
    parser.section("training")
    add_options(parser, TrainingSettings)
    parser.set_defaults(training="margin", select="last", batch_size="128", weight_decay="0")
    parser.section(ATTACKS)
    parser.add_argument("--norm", default="l2", help=f"one of {', '.join(THREATS)}")
    parser.add_argument("--tau", default="1e-7", help="absolute tolerance that every equation of every prediction is held to")
    parser.add_argument("--radii", help="where to count, pixel units, such as 0.5 or 36/255; default by data set")
    parser.add_argument(
        "--attacks",
        default=f"pgd40,apgd100-ce,{ENSEMBLE}",
        help=f"{ENSEMBLE} ({', '.join(certified.MEMBERS)}, each on the survivors of those before), or of {ATTACK_CHOICE}",
    )
    parser.add_argument("--attack-images", default="200", help="test images that are attacked at each radius")
    parser.add_argument(
        "--hunt", default="0", help=f"so many test images are attacked inside their own certificates, by {ENSEMBLE}; 0: none"
    )
    parser.section(DATA)
    parser.add_argument(
        "--dataset", help=f"one of {', '.join(data.DATASETS)}, or {FORMS}; default: what the networks were trained on, digits"
    )
    add_image_options(parser)
    parser.add_argument("--train-limit", help="use so many training images only")
    parser.add_argument("--test-limit", help="use so many test images only; default: 1000", default="1000")
    parser.section(RUN)
    add_run_options(parser)
    add_smoke(parser)
    return parser


def _config(args: Namespace) -> tuple[CertifyConfig, data.Data]:
    """What the options stand for, and the images; what was chosen by timing is that of the run that goes on."""
    parse_choice(args.norm, "--norm", tuple(THREATS))
    device, numbers = parse_device(args.device), {}
    for name in ("attack_images", "hunt", "train_limit", "test_limit", "parameters", "image_size"):
        numbers[name] = parse_one(getattr(args, name), "--" + name.replace("_", "-"), int, int(name != "hunt"))
    subjects = [subject for text in args.networks for subject in load_subjects(text, device)]
    known = {subject.meta["dataset"] for subject in subjects if subject.meta}
    dataset = data.named(args.dataset or (known.pop() if len(known) == 1 else "digits"), "--dataset")
    names = [str(name) if name == ENSEMBLE else parse_attacks(name)[0] for name in split_top_level(args.attacks)]
    usual = RADII[args.norm].get(dataset) or defaults_of(dataset)[args.norm]
    config = CertifyConfig(
        networks=tuple(args.networks),
        weights={subject.name: digest(subject.net) for subject in subjects},
        pairs=(),
        seeds=tuple(parse_numbers(args.seeds, "--seeds", int, 0)) if args.train else (),
        settings=None,
        seconds=parse_one(args.seconds, "--seconds", float, 1) if args.train else None,
        dataset=dataset,
        norm=args.norm,
        tau=parse_one(args.tau, "--tau", float, 0) or 0.0,
        radii=tuple(usual if args.radii is None else parse_numbers(args.radii, "--radii", float, 0)),
        attacks=tuple(dict.fromkeys(names)),
        attack_images=numbers["attack_images"],
        hunted=numbers["hunt"],
        data_dir=str(args.data_dir),
        download=args.download,
        train_limit=numbers["train_limit"],
        test_limit=numbers["test_limit"],
        image_size=numbers["image_size"],
        device=str(device),
        smoke=args.smoke,
        **provenance(str(device)),
    )
    config = replace(config, **(SMOKE if args.smoke else {}))
    limits = config.train_limit, config.test_limit
    images, size = images_for(subjects, dataset, config.data_dir, config.download, limits, config.image_size)
    images = images.to(device)
    for subject in subjects:
        logits_of(subject.net, images.test.images[:2], subject.name)
        stability.certify(subject.net, images.test.images[:1], norm=THREATS[config.norm], tau=config.tau)
    sizes = {"test": len(images.test)} | ({"train": len(images.train)} if args.train else {})
    model, schemes = args.model or MODELS[config.norm], [str(scheme) for scheme in parse_schemes(args.schemes)]
    fields = parse_fields(args.fields)
    parts = [*config.networks, dataset, *config.attacks]
    parts += [str(odenets.get_model(model)), *schemes, *fields] if args.train else []
    digests = own.digests(own.codes_of(parts)) | ({dataset: images.digest} if images.digest else {})
    config = replace(config, data=sizes, image_size=size, own=digests)
    if not args.train:
        return config, images
    settings = training_settings(args, dataset, 1, 0.1)
    config = replace(config, settings=replace(settings, epochs=1, checkpoint_seconds=settings.checkpoint_seconds))
    before = read_config(Path(args.out, "config.json")) if args.resume and Path(args.out, "config.json").is_file() else {}
    if before.get("pairs"):
        return replace(config, pairs=tuple(Pair(**pair) for pair in before["pairs"])), images
    pairs = tuple(pairs_of(config, model, fields, schemes, images, numbers["parameters"]))
    if all(pair.refused for pair in pairs):
        raise InputError(f"nothing is proven of any pair of --fields and --schemes: {pairs[0].refused}")
    return replace(config, pairs=pairs), images


def _work(run: Run, config: CertifyConfig, test: data.Split, console: Console) -> None:
    """Do what the records lack, one line a step, so that a killed run loses one at most."""
    todo = list(_steps(run, config, test))
    if todo:
        tell(console, f"{count(len(todo), 'step')}, on {config.data['test']} test images of {config.dataset}, {config.norm}")
    with progress_bars(console) as progress:
        task = progress.add_task("", total=len(todo))
        for name, step, work in todo:
            progress.update(task, description=f"{name}: {step}")
            run.append([work()])
            progress.advance(task)
            if not console.is_terminal:
                tell(console, f"{name}: {step} took {duration(run.records[-1].seconds)}")


def _steps(run: Run, config: CertifyConfig, test: data.Split) -> Iterator[tuple[str, str, Any]]:
    """(network, step, what does it and returns its `Line`), those that are not on the disk yet."""
    done = {line.key for line in run.records}
    nets = [(pair, seed) for pair in config.pairs if not pair.refused for seed in config.seeds]
    for pair, seed in nets:
        name = f"{pair.label}, seed {seed}"
        if (name, "training") not in done:
            yield name, "training", partial(_train, run, config, pair, seed, name)
        path = checkpoint_of(run.folder / _folder(pair), _case(pair, seed))
        yield from _measured(run, config, name, pair.label, seed, str(path), test, done)
    for text in config.networks:
        for subject in load_subjects(text, config.device):
            meta = subject.meta or {}
            label = f"{meta['field']}, {meta['scheme']}" if meta and len(config.weights) == 1 else subject.name
            yield from _measured(run, config, subject.name, label, meta.get("seed", 0), subject.text, test, done)


def _measured(
    run: Run, config: CertifyConfig, name: str, label: str, seed: int, path: str, test: data.Split, done: set[tuple[str, str]]
) -> Iterator[tuple[str, str, Any]]:
    """The steps of one network that are not done: its certificate, attacks at the radii, a hunt inside the certificates."""
    line = partial(Line, network=name, pair=label, seed=seed)
    attacked, hunted = test.first(config.attack_images), min(config.hunted, len(test))

    def certificate() -> Line:
        net = load_subject(path, config.device).net
        (found, _), seconds = proofs.timed(lambda: proofs.prove(net, test, config.norm, config.tau))
        return line(step="certificate", seconds=seconds, certified=found)

    def attack(attack: str, radius: float, step: str) -> Line:
        net, judge, _ = _judged(config, path, attacked)
        found, seconds = proofs.timed(lambda: proofs.attack(net, judge, attacked, attack, config.norm, radius, seed))
        return line(step=step, seconds=seconds, measurement=found)

    def hunt(piece: int, step: str) -> Line:
        """One of the pieces: neighbours by radius, as the certificates of the run have them, fall into few groups."""
        known = next(line.certified for line in run.records if line.key == (name, "certificate"))
        order = sorted(range(hunted), key=lambda index: (known.radii[index], index))
        own = torch.tensor(order[piece * HUNTED : (piece + 1) * HUNTED], device=test.labels.device)
        images = data.Split(test.images[own], test.labels[own])
        net, judge, radii = _judged(config, path, images)
        members = config.attacks if config.smoke else certified.MEMBERS
        found, seconds = proofs.timed(lambda: proofs.hunt(net, judge, images, radii, config.norm, members))
        return line(step=step, seconds=seconds, hunt=found)

    steps: list[tuple[str, Any]] = [("certificate", certificate)]
    for attack_name in config.attacks:
        for radius in config.radii:
            step = f"attack {attack_name} at {radius:g}"
            steps.append((step, partial(attack, attack_name, radius, step)))
    pieces = -(-hunted // HUNTED)
    for piece in range(pieces):
        step = f"hunt {piece + 1} of {pieces}"
        steps.append((step, partial(hunt, piece, step)))
    yield from ((name, step, work) for step, work in steps if (name, step) not in done)


def _judged(config: CertifyConfig, path: str, images: data.Split) -> tuple[nn.Module, Any, torch.Tensor]:
    """(the network, the certified network as a judge, the radii of the images)."""
    net = load_subject(path, config.device).net
    certificate = stability.certify(net, images.images, images.labels, norm=THREATS[config.norm], tau=config.tau)
    with torch.no_grad():
        classes = net(images.images[:1]).shape[1]
    return net, proofs.certified_judge(certificate, classes), certificate.radius


def _folder(pair: Pair) -> str:
    return "nets-" + _case(pair, 0).name.rpartition("-substeps")[0]


def _case(pair: Pair, seed: int) -> Case:
    return Case(pair.scheme, 1, seed, field=pair.field)


def _train(run: Run, config: CertifyConfig, pair: Pair, seed: int, name: str) -> Line:
    """Train a net of a pair, into a folder of its own within the run's."""
    assert config.settings
    folder = run.folder / _folder(pair)
    with saving(folder):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    settings = RunConfig(
        experiment=config.experiment,
        schemes=(pair.scheme,),
        fields=(pair.field,),
        dataset=config.dataset,
        model=pair.model,
        settings=replace(config.settings, epochs=pair.epochs),
        seeds=config.seeds,
        attacks=config.attacks,
        epsilons=config.radii,
        threat=config.norm,
        data_dir=config.data_dir,
        download=config.download,
        train_limit=config.train_limit,
        test_limit=config.test_limit,
        image_size=config.image_size,
        device=config.device,
        own=config.own,
    )
    case = _case(pair, seed)
    found = run_task(settings, shelf.Disk(folder / "checkpoints"), Task(case, TRAINING))
    shelf.remove(folder / "checkpoints", case.name)
    return Line(
        network=name,
        step="training",
        pair=pair.label,
        seed=seed,
        seconds=found["seconds"],
        parameters=found["parameters"],
        epochs=pair.epochs,
    )


if __name__ == "__main__":
    raise SystemExit(main())
