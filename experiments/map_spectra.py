"""See a network's dynamics as a numerical analyst does: spectra over stability regions, growth of perturbations, pseudospectra.

    python experiments/map_spectra.py runs/compare/checkpoints/NAME.pt
    python experiments/map_spectra.py my.py:net --dataset my_images/ --image-size 32
    python experiments/map_spectra.py my.py:resnet --shape 3,32,32 --scheme my.py:SCHEME --predictors my.py:departure

The network is a checkpoint of a run of ours, or a torchvision ResNet in eval mode by import path, read by odenets.convert. A
folder under runs/ receives report.html, blocks.csv, spectra.csv, growth.csv and figures/. Everything is computed in float64.
"""

import csv
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import odenets
import stability
from experiments.harness.command import (
    DATA,
    RUN,
    Parser,
    parse_device,
    parse_numbers,
    parse_one,
    parse_predictors,
    run_cli,
    split_top_level,
)
from experiments.harness.defaults import defaults_of
from experiments.harness.report import survey as mapping
from experiments.harness.run.rehearsal import check_predictors
from experiments.harness.run.subject import Subject, images_for, load_subject, logits_of
from experiments.harness.training import data
from experiments.harness.training.brought import FORMS, IMAGE_SIZE
from odenets.errors import InputError


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("map_spectra.py", __doc__)
    parser.add_argument("subject", help="a checkpoint of a run, package.module:callable or path/to/file.py:callable")
    parser.section(DATA)
    parser.add_argument("--dataset", help=f"one of {', '.join(data.DATASETS)}, or {FORMS}; default: that of the checkpoint")
    parser.add_argument("--image-size", metavar="N", help=IMAGE_SIZE)
    parser.add_argument("--data-dir", default="data", help="folder of torchvision's files")
    parser.add_argument("--shape", help="channels,height,width: random images instead of a data set")
    parser.add_argument("--images", default="4", help="how many images")
    parser.section("what is mapped")
    parser.add_argument("--epsilon", help="L-infinity radius; default by data set, 8/255 for random images")
    parser.add_argument("--scheme", help="another scheme on the same weights")
    parser.add_argument("--substeps", help="another number of steps for each block")
    parser.add_argument("--predictors", default="", help="of your own, FILE.py:NAME, measured at each block beside ours")
    parser.add_argument("--block", help="stage,block of the pseudospectra; default: the one with the largest log-norm")
    parser.section(RUN)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", help="folder; default: a new one under runs/")
    args = parser.parse_args(argv)
    subject = load_subject(args.subject, parse_device(args.device))
    net = subject.net if odenets.stages(subject.net) else odenets.convert(subject.net)
    substeps = parse_one(args.substeps, "--substeps", int, 1)
    if args.scheme or substeps:
        scheme = args.scheme or next(iter(odenets.stages(net).values())).scheme
        odenets.set_scheme(net, scheme, substeps)
    images, labels, source = _images(args, subject, next(net.parameters()).device)
    logits_of(net, images, subject.name)
    epsilon = parse_one(args.epsilon, "--epsilon", float, 1e-9) or (8 / 255 if args.shape else _middle(source))
    block = args.block and tuple(parse_numbers_pair(args.block))
    out = Path(args.out or f"runs/map_spectra-{time.strftime('%Y%m%d-%H%M%S')}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another --out")
    further = [stability.get_predictor(name) for name in parse_predictors(args.predictors)]
    found = mapping.survey(net, images, labels, epsilon, block)
    check_predictors(further, found.blocks)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in mapping.tables(found, further).items():
        with open(out / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    mapping.write_page(found, subject.name, f"{len(images)} {source} images", out, further)
    for sentence in mapping.sentences(found):
        print(sentence)
    print(f"Report: {(out / 'report.html').resolve()}")
    return 0


def parse_numbers_pair(text: str) -> list[int]:
    """Two whole numbers, which may be equal."""
    pieces = split_top_level(text)
    if len(pieces) != 2:
        raise InputError(f"--block takes stage,block, got {text!r}")
    return [parse_numbers(piece, "--block", int, 0)[0] for piece in pieces]


def _images(args: Namespace, subject: Subject, device: torch.device) -> tuple[Tensor, Tensor | None, str]:
    """(images, labels or None, what they are)."""
    count = parse_one(args.images, "--images", int, 1)
    if args.shape:
        pieces = split_top_level(args.shape)
        if len(pieces) != 3:
            raise InputError(f"--shape takes channels,height,width, got {args.shape!r}")
        shape = [parse_numbers(piece, "--shape", int, 1)[0] for piece in pieces]
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).to(device), None, "random"
    name = args.dataset or (subject.meta or {}).get("dataset")
    if not name:
        raise InputError(f"{args.subject} names no data set; give --dataset, or --shape for random images")
    name = data.named(name, "--dataset")
    size = parse_one(args.image_size, "--image-size", int, 1)
    split = images_for([subject], name, args.data_dir, True, (None, count), size)[0].test
    return split.images.to(device), split.labels.to(device), name


def _middle(dataset: str) -> float:
    return sorted(defaults_of(dataset)["linf"])[1]


if __name__ == "__main__":
    raise SystemExit(main())
