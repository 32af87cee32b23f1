"""The options that the experiments share, and the configuration that they stand for."""

from argparse import BooleanOptionalAction, Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import odenets
from experiments.harness import statistics
from experiments.harness.command import (
    ATTACK_CHOICE,
    ATTACKS,
    COMPARED,
    DATA,
    RUN,
    SEEDS,
    TRAINING,
    Parser,
    parse_attacks,
    parse_choice,
    parse_duration,
    parse_numbers,
    parse_one,
    parse_predictors,
    parse_schemes,
)
from experiments.harness.config import add_options
from experiments.harness.defaults import SMOKE, defaults_of
from experiments.harness.run import own
from experiments.harness.run.budget import FEWEST
from experiments.harness.run.cluster import add_cluster_options, connect, parse_place
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import read_config
from experiments.harness.run.log import LOGS, check_log
from experiments.harness.run.machine import provenance
from experiments.harness.run.schedule import AUDITED
from experiments.harness.training.brought import FORMS, IMAGE_SIZE
from experiments.harness.training.data import DATASETS, RESPLIT, SPLITS, can_be_resplit, named
from experiments.harness.training.settings import TrainingSettings, training_settings
from odenets.errors import InputError
from odenets.own import is_own
from stability.attacks.threats import THREATS


def add_arguments(parser: Parser, seeds: str = "0,1,2") -> None:
    """The options that the experiments share; None stands for a default that depends on the data set."""
    names = ", ".join(odenets.list_schemes())
    parser.section(COMPARED)
    parser.add_argument(
        "--schemes", default="explicit,implicit", help=f"comma-separated specs such as explicit,ie_skip(gamma=0.05): {names}"
    )
    parser.add_argument("--model", default="small", help=f"one of {', '.join(odenets.MODELS)}, or FILE.py:NAME")
    parser.section(DATA)
    parser.add_argument("--dataset", default="digits", help=f"one of {', '.join(DATASETS)}; digits needs no file; or {FORMS}")
    add_image_options(parser)
    parser.add_argument("--train-limit", help="use so many training images only")
    parser.add_argument("--test-limit", help="use so many test images only")
    parser.add_argument(
        "--splits",
        help=f"one of {', '.join(SPLITS)}: whether all seeds share training and test images, or each draws its own (of "
        f"{', '.join(RESPLIT)}), the same for all schemes; intervals are corrected for what splits share; default: fixed",
    )
    parser.section(TRAINING)
    add_options(parser, TrainingSettings)
    parser.section(SEEDS)
    parser.add_argument(
        "--seeds",
        help=f"initial weights and order of batches, the same for every scheme; default: {seeds}, with --budget as many as fit",
    )
    parser.set_defaults(usual_seeds=seeds)
    parser.add_argument(
        "--budget",
        metavar="TIME",
        help="end within a time such as 30s, 5m or 1h30m: the first nets are timed, then phases and seeds are taken as they "
        f"fit, never fewer than {FEWEST} seeds unless --seeds says so; with --resume, further seeds",
    )
    parser.add_argument(
        "--until-clear",
        action="store_true",
        help="add seeds until every difference at the middle radius has a verdict: looks after 5, 8, 12, 20, 30 seeds, "
        "which intervals and verdicts pay for; with --budget, as far as the time goes",
    )
    parser.add_argument(
        "--seeds-at-most", metavar="N", help="with --budget or --until-clear, no more than so many in all; --until-clear: 30"
    )
    parser.add_argument(
        "--margin", default="2", help="of equivalence: a difference of accuracies, in points, that is of no practical interest"
    )
    parser.section(ATTACKS)
    parser.add_argument("--attacks", help=f"of {ATTACK_CHOICE}; default: pgd20")
    parser.add_argument(
        "--threat",
        default="linf",
        help=f"one of {', '.join(THREATS)}: the norm that attacks are held to; training attacks are always held to linf",
    )
    parser.add_argument("--epsilons", help="radii of the ball, pixel units, such as 0.1 or 8/255; default by data set")
    parser.add_argument(
        "--predictors",
        default="",
        help="of your own, FILE.py:NAME, measured at each block beside ours and related to robustness",
    )
    parser.add_argument(
        "--audit",
        help=f"which nets are audited, one of {', '.join(AUDITED)}; first: of each scheme that of the first seed, the others "
        "get the checks that take seconds; cheap: these for every net; default: all, with --budget first, or cheap if need be",
    )
    parser.section(RUN)
    add_run_options(parser, "; it takes further --seeds after those it has")
    add_cluster_options(parser)
    parser.add_argument(
        "--workers",
        help="processes; default: as many as cores and memory carry; on GPUs one for each, several of small nets; more share "
        "them; with --cluster, tasks at once at most",
    )
    parser.add_argument("--log", help=f"one of {', '.join(LOGS)}: curves of each training beside the bars, below --out")
    add_smoke(parser)


def add_image_options(parser: Parser) -> None:
    """Where the images of --dataset come from."""
    parser.add_argument("--image-size", metavar="N", help=IMAGE_SIZE)
    parser.add_argument("--data-dir", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action=BooleanOptionalAction, default=True, help="fetch missing files")


def add_run_options(parser: Parser, resumed: str = "") -> None:
    """Where a run computes and what becomes of it; `resumed`: what else --resume does."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="folder of the run; default: a new one under runs/")
    help = f"go on with the run in --out, or start it where nothing is there{resumed}"
    parser.add_argument("--resume", action="store_true", help=help)


def add_smoke(parser: Parser) -> None:
    """--smoke."""
    parser.add_argument("--smoke", action="store_true", help="every path in seconds; the numbers mean nothing")


def make_config(
    args: Namespace, script: str, substeps: Iterable[int], fields: Iterable[str] = ("residual",), reads: Iterable[str] = ()
) -> RunConfig:
    """The `RunConfig` of a run from parsed options; ValueError names what is wrong and what is valid."""
    dataset, image_size = named(args.dataset, "--dataset"), parse_one(args.image_size, "--image-size", int, 1)
    if image_size and dataset in DATASETS:
        raise InputError(f"--image-size is for images of your own; those of {dataset} have one size")
    if not is_own(args.model):
        parse_choice(args.model, "--model", tuple(odenets.MODELS))
    parse_choice(args.threat, "--threat", tuple(THREATS))
    check_out(args)
    if args.log is not None:
        parse_choice(args.log, "--log", LOGS)
        check_log(args.log)
    before = _before(args)
    budget = parse_duration(args.budget, "--budget")
    at_most = parse_one(args.seeds_at_most, "--seeds-at-most", int, FEWEST)
    splits = (before.get("splits") or "fixed") if args.splits is None else args.splits
    parse_choice(splits, "--splits", SPLITS)
    if splits == "per-seed" and not can_be_resplit(dataset):
        raise InputError(
            f"--splits per-seed takes {', '.join(RESPLIT)} or data of your own, which are split here: {dataset} has test images"
        )
    looks = _looks(args, before, at_most)
    substeps, fields = tuple(substeps), tuple(fields)
    if looks and len(parse_schemes(args.schemes)) * len(fields) * len(substeps) < 2:
        raise InputError(f"--until-clear waits for clear differences, and --schemes {args.schemes} leaves nothing to compare")
    if at_most and not (budget or looks):
        raise InputError("--seeds-at-most needs --budget or --until-clear; without one, --seeds says which they are")
    audit = args.audit or before.get("audit") or ("first" if budget else "all")
    parse_choice(audit, "--audit", AUDITED)
    usual = before.get("seeds") or parse_numbers(args.usual_seeds, "--seeds", int, 0)
    seeds = usual if args.seeds is None else parse_numbers(args.seeds, "--seeds", int, 0)
    if (budget or looks) and args.seeds is None:
        seeds = [*seeds, *(seed for seed in range(FEWEST) if seed not in seeds)][: max(FEWEST, len(seeds))]
    if max(seeds) >= 2**63:
        raise InputError(f"--seeds must be below 2^63, as torch's generators take them; got {max(seeds)}")
    defaults = defaults_of(dataset)
    epsilons = defaults[args.threat] if args.epsilons is None else parse_numbers(args.epsilons, "--epsilons", float, 0)
    middle = statistics.middle(sorted(epsilons))
    margin = parse_one(args.margin, "--margin", float, 0)
    if not 0 < margin < 100:
        raise InputError(f"--margin lies above 0 and below 100 points, got {args.margin}")
    train_epsilon = middle if args.threat == "linf" else defaults["linf"][1]
    config = RunConfig(
        experiment=script,
        schemes=tuple(str(scheme) for scheme in parse_schemes(args.schemes)),
        substeps=substeps,
        fields=fields,
        dataset=dataset,
        image_size=image_size,
        data_dir=str(args.data_dir),
        download=args.download,
        train_limit=parse_one(args.train_limit, "--train-limit", int, 1),
        test_limit=parse_one(args.test_limit, "--test-limit", int, 1),
        model=str(odenets.get_model(args.model)),
        settings=training_settings(args, dataset, defaults["epochs"], train_epsilon),
        seeds=tuple(seeds),
        attacks=tuple(parse_attacks("pgd20" if args.attacks is None else args.attacks)),
        threat=args.threat,
        epsilons=tuple(epsilons),
        predictors=tuple(parse_predictors(args.predictors)),
        splits=splits,
        margin=margin / 100,
        audit=audit,
        audit_epsilon=middle,
        device=parse_place(args)[0],
        workers=parse_one(args.workers, "--workers", int, 1),
        budget=budget,
        seeds_at_most=at_most,
        looks=looks,
        reported=tuple(before.get("reported", ())),
        reads=tuple(reads),
        log=args.log,
        smoke=args.smoke,
    )
    if args.smoke:
        given = {key: value for key, value in SMOKE.items() if getattr(args, key, None) is None}
        settings = replace(config.settings, epochs=given.pop("epochs", config.settings.epochs))
        config = replace(config, settings=settings, **given)
    _, cluster = parse_place(args)
    if cluster:
        connect(cluster)  # before anything is begun
    return replace(config, own=own.digests(own.codes_of(config.parts)), **provenance(config.device))


def _looks(args: Namespace, before: dict[str, Any], at_most: int | None) -> tuple[int, ...]:
    """Numbers of seeds after which a run that ends when it is clear is looked at: those of the run that goes on."""
    known = tuple(before.get("looks", ()))
    if not (args.until_clear or known):
        return ()
    for given, option in ((args.seeds, "--seeds"), (args.smoke, "--smoke")):
        if given:
            raise InputError(f"--until-clear chooses its seeds by what it finds, so that {option} makes no sense with it")
    return statistics.schedule(at_most) if at_most else known or statistics.schedule()


def _before(args: Namespace) -> dict[str, Any]:
    """The configuration of the run that is resumed, for what is not asked for anew; {} where there is none of this kind."""
    path = Path(args.out or "", "config.json")
    if not args.resume or not path.is_file():
        return {}
    config = read_config(path)
    return config if "schemes" in config else {}


def check_out(args: Namespace) -> None:
    """Refuse an --out and a --resume that make no sense together."""
    if args.out == "":
        raise InputError("--out is empty; name the folder of the run, or leave the option out for a new one under runs/")
    if args.resume and not args.out:
        raise InputError("--resume needs --out: the folder of the run to go on with")
