"""Certified nets side by side at equal parameters and equal CPU seconds of training: fields with schemes, and other libraries.

    python experiments/benchmarks/certified_peers.py --data-dir DIR [--seconds 100] [--seeds 0,1,2,3,4] [--out DIR] [--resume]

Seed by seed every method is trained with the same loss and the same batches until its seconds of this thread are over, the
learning rate following the share of them that is spent; then it is certified and attacked. What is cut off goes on with
--resume, and what there is by then is balanced. Other libraries (extra [peers]) are certified twice: as they claim, with a
Lipschitz constant of 1, and with our proven bounds of the norms of their layers' weights. Those that are not installed are
named and left out.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from experiments.benchmarks.libraries import peer
from experiments.harness.command import Parser, parse_names, parse_numbers, parse_one, run_cli
from experiments.harness.report import certificates as report
from experiments.harness.run import proofs
from experiments.harness.run.certified import Certified, CertifyConfig, Line, by_pair
from experiments.harness.run.folder import Run
from experiments.harness.run.machine import provenance
from experiments.harness.run.schema import Measurement
from experiments.harness.training import data
from experiments.harness.training.losses import lowered
from experiments.harness.training.settings import TrainingSettings
from odenets.errors import InputError
from odenets.nets.certifiable import Centre, MaxMin
from odenets.nets.convolution import operator_bound

RADII, ATTACK, ATTACKED, TAU = (0.5, 1.0, 1.58), "pgd40", 100, 1e-6
CLAIMED = ", as claimed"
KEPT = (Centre, MaxMin, nn.PixelUnshuffle, nn.Flatten, nn.Linear)  # layers that no distance grows in, and the head
SORTS = ("MaxMin", "GroupSort2")  # the same of other libraries
BATCH, PEAK, WARM = 128, 6e-3, 0.25  # peak of the learning rate; share of the time in which it rises
Build = Callable[[int], nn.Module]  # of a width


@dataclass(frozen=True)
class Method:
    """What is compared: a net by width, and the widths that it takes."""

    build: Build
    step: int = 1
    rate: float = PEAK


def _own(field: str, scheme: str, maxmin: bool = False) -> Build:
    def build(width: int) -> nn.Module:
        return odenets.certifiable_small(size=28, width=width, field=field, scheme=scheme, maxmin=maxmin)

    return build


def _peer(conv: Callable[[int, int], nn.Module], activation: Callable[[], nn.Module], head: Callable[..., nn.Module]) -> Build:
    """Their layers in the places of ours: the same stem, two convolutions a stage, no pooling."""

    def build(width: int) -> nn.Module:
        layers: list[nn.Module] = [Centre()]
        for channels, wide in ((1, width), (width, 2 * width)):
            layers += [nn.PixelUnshuffle(2), conv(4 * channels, wide), activation(), conv(wide, wide), activation()]
        return nn.Sequential(*layers, nn.Flatten(), head(2 * width * 49, 10))

    return build


def _methods() -> dict[str, Method]:
    """Those whose libraries are there."""
    found = {
        "CPL": Method(_own("gradient_flow", "explicit")),
        "Cayley": Method(_own("skew", "implicit_midpoint(tol=0.01)", maxmin=True), 2),
        "splitting": Method(_own("monotone", "splitting(tol=0.01)")),
        "implicit Euler": Method(_own("gradient_flow", "implicit(tol=0.01)")),
        "midpoint": Method(_own("monotone", "implicit_midpoint(tol=0.01)")),
    }
    lip, aoc, linear = (peer(name) for name in ("deel.torchlip", "orthogonium.layers.conv.AOC", "orthogonium.layers.linear"))
    if lip:
        found["deel-torchlip"] = Method(
            _peer(partial(_same, lip.SpectralConv2d), lip.GroupSort2, lip.FrobeniusLinear), 2, PEAK_OF["deel-torchlip"]
        )
    if aoc:
        sort = peer("orthogonium.layers.custom_activations").MaxMin
        found["orthogonium AOC"] = Method(
            _peer(partial(_same, aoc.AdaptiveOrthoConv2d), sort, linear.UnitNormLinear), 2, PEAK_OF["orthogonium AOC"]
        )
    return found


PEAK_OF = {"deel-torchlip": PEAK, "orthogonium AOC": PEAK}


def _same(conv: Any, inputs: int, outputs: int) -> nn.Module:
    return conv(inputs, outputs, 3, padding=1)


def size(net: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def sized(method: Method, parameters: int) -> nn.Module:
    """A net of about so many parameters."""
    widths = range(4, 25, method.step)
    return method.build(min(widths, key=lambda width: abs(size(method.build(width)) - parameters)))


def train(net: nn.Module, images: data.Split, seconds: float, seed: int, peak: float) -> tuple[float, float]:
    """Train for so many CPU seconds with the margin loss; (seconds, passes over the images)."""
    settings = TrainingSettings()
    optimizer = torch.optim.AdamW(net.parameters(), peak, weight_decay=0.0)
    generator, limits = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    start, done, order = time.process_time(), 0, torch.empty(0, dtype=torch.int64)
    net.train()
    while (share := (time.process_time() - start) / seconds) < 1:
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        rise = share / WARM if share < WARM else (1 + math.cos(math.pi * (share - WARM) / (1 - WARM))) / 2
        optimizer.param_groups[0]["lr"] = peak * max(rise, 1e-3)
        optimizer.zero_grad(set_to_none=True)
        cooled = lowered(net(images.images[rows]), images.labels[rows], settings) / settings.margin_temperature
        loss = settings.margin_temperature * F.cross_entropy(cooled, images.labels[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_clip)
        optimizer.step()
        odenets.hold(net, limits)
        done += len(rows)
    spent = time.process_time() - start
    net.eval()
    odenets.prove_limits(net)
    return spent, done / len(images)


def exported(net: nn.Module) -> nn.Sequential:
    """A peer's net as plain layers in float64 that compute the same."""
    layers: list[nn.Module] = []
    for layer in net.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight, bias = layer.weight.detach(), layer.bias
            plain: Any = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
            if isinstance(layer, nn.Conv2d):
                sizes = weight.shape[1], weight.shape[0], 3
                plain = nn.Conv2d(*sizes, padding=1, padding_mode=layer.padding_mode, bias=bias is not None)
            plain.weight.data = weight
            if bias is not None:
                plain.bias.data = bias.detach()
            layers.append(plain)
        else:
            layers.append(copy.deepcopy(layer))
    found = nn.Sequential(*layers).double().eval().requires_grad_(False)
    x = torch.rand(8, 1, 28, 28)
    with torch.no_grad():
        apart = (found(x.double()) - net(x)).abs().max().item()
    if not apart < 1e-3:
        raise InputError(f"a peer's net does not compute what its weights say: the logits are {apart:g} apart")
    return found


def bound(plain: nn.Sequential) -> float:
    """The product of the proven norms of the convolutions on their grids: the Lipschitz constant in front of the head."""
    y, product = torch.zeros(1, 1, 28, 28, dtype=torch.float64), 1.0
    for layer in plain:
        if isinstance(layer, nn.Conv2d):
            product *= _circular(layer, y.shape[2]) if layer.padding_mode == "circular" else _padded(layer, tuple(y.shape[2:]))
        elif not isinstance(layer, KEPT) and type(layer).__name__ not in SORTS:
            raise InputError(f"nothing is known of a {type(layer).__name__}")
        y = layer(y)
    return product


def _padded(conv: nn.Conv2d, grid: Any) -> float:
    return operator_bound(conv.weight, conv.groups, grid).item()


def _circular(conv: nn.Conv2d, pixels: int) -> float:
    """Of a circular convolution: the largest norm of its symbol at the frequencies of the grid."""
    symbol = torch.fft.fft2(conv.weight, s=(pixels, pixels)).permute(2, 3, 0, 1)
    return torch.linalg.matrix_norm(symbol, 2).max().item() * (1 + 1e-10)


def certified(plain: nn.Sequential, test: data.Split, lipschitz: float) -> Certified:
    """Radii of plain layers from their margins, in float64, whose rounding is small beside what is taken off here."""
    x = test.images.double().requires_grad_()
    with torch.enable_grad():
        logits = plain(x)
        top, other = logits.topk(2, 1).indices.unbind(1)
        lead = logits.gather(1, top[:, None]) - logits.gather(1, other[:, None])
        (slope,) = torch.autograd.grad(lead.sum(), x)
    last: Any = plain[-1]
    logits, head = logits.detach(), last.weight
    distances = torch.cdist(head, head)[top]
    gaps = (logits.gather(1, top[:, None]) - logits) / distances.clamp_min(1e-12)
    margin = gaps.scatter(1, top[:, None], math.inf).amin(1)
    right = top == test.labels
    radii = torch.where(right, (margin / lipschitz - 1e-6).clamp_min(0), 0.0)
    kept = (slope.flatten(1).norm(dim=1) / distances.gather(1, other[:, None])[:, 0])[: proofs.KEPT].mean().item()
    found = tuple(math.floor(radius * 1e6) / 1e6 for radius in radii.tolist())
    return Certified(found, Measurement.of("clean", 0.0, "exact", right.numpy(), 0), kept, lipschitz)


def case(config: CertifyConfig, method: Method, name: str, seed: int, images: data.Data, parameters: int) -> list[Line]:
    """Train, certify and attack one net: its lines, and of a peer those of what it claims."""
    torch.manual_seed(seed)
    net = sized(method, parameters)
    assert config.seconds
    spent, passes = train(net, images.train, config.seconds, seed, method.rate)
    lines, judges = [], dict[str, Any]()

    def note(label: str, step: str, seconds: float = 0.0, **found: Any) -> None:
        network = f"{config.dataset}, {label}, seed {seed}"
        lines.append(Line(network=network, step=step, pair=label, seed=seed, seconds=round(seconds, 2), **found))

    start = time.process_time()
    if name in PEAK_OF:
        plain = exported(net)
        for label, lipschitz in ((name, bound(plain)), (name + CLAIMED, 1.0)):
            note(label, "certificate", time.process_time() - start, certified=certified(plain, images.test, lipschitz))
            judges[label] = lambda x: (plain(x.double()), torch.ones(len(x), dtype=torch.bool))
    else:
        found, certificate = proofs.prove(net, images.test, "l2", config.tau)
        note(name, "certificate", time.process_time() - start, certified=found)
        judges[name] = proofs.certified_judge(certificate, images.classes)
    attacked = images.test.first(config.attack_images)
    for radius in config.radii:
        start = time.process_time()
        left = proofs.attack(net, judges[name], attacked, ATTACK, "l2", radius, seed)
        for label in judges:
            note(label, f"attack {ATTACK} at {radius:g}", time.process_time() - start, measurement=left)
    for label in judges:
        note(label, "training", spent, parameters=size(net), epochs=math.ceil(passes))
    return lines


def _cases(run: Run, datasets: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    done = {line.network for line in run.records}
    for dataset in datasets:
        for seed in seeds:
            yield from ((dataset, seed, name) for name in methods if f"{dataset}, {name}, seed {seed}" not in done)


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("certified_peers.py", __doc__)
    parser.add_argument("--datasets", default="mnist,fashion-mnist", help="one after the other")
    parser.add_argument("--methods", help="by default all whose libraries are installed")
    parser.add_argument("--seconds", default="100", help="CPU seconds of each training")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="one after the other")
    parser.add_argument("--parameters", default="20000", help="of each net, about")
    parser.add_argument("--data-dir", default="data", help="folder of torchvision's files")
    parser.add_argument("--train-limit", help="use so many training images only")
    parser.add_argument("--test-limit", default="1000", help="test images that are certified; the first 100 are attacked")
    parser.add_argument("--out", default="runs/certified-peers", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or start it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    known, console = _methods(), Console()
    methods = parse_names(args.methods, "--methods", known) if args.methods else list(known)
    datasets = parse_names(args.datasets, "--datasets", [name for name in data.DATASETS if "mnist" in name])
    seeds, parameters = parse_numbers(args.seeds, "--seeds", int, 0), parse_one(args.parameters, "--parameters", int, 1)
    limits = [parse_one(getattr(args, f"{name}_limit"), f"--{name}-limit", int, 1) for name in ("train", "test")]

    def config_of(dataset: str) -> CertifyConfig:
        return CertifyConfig(
            networks=tuple(methods),
            weights={},
            pairs=(),
            seeds=tuple(seeds),
            settings=None,
            seconds=parse_one(args.seconds, "--seconds", float, 0),
            dataset=dataset,
            norm="l2",
            tau=TAU,
            radii=RADII,
            attacks=(ATTACK,),
            attack_images=ATTACKED,
            hunted=0,
            train_limit=limits[0],
            test_limit=limits[1],
            **provenance("cpu"),
        )

    recorded = config_of(",".join(datasets)).to_json() | {"experiment": "certified-peers", "parameters": parameters}
    run = Run(args.out, recorded, args.resume, Line)
    for name in ("deel-torchlip", "orthogonium AOC"):
        if name not in known:
            console.print(f"{name} is not installed (extra [peers]): left out")
    for dataset, seed, name in _cases(run, datasets, methods, seeds):
        images = data.load(dataset, args.data_dir, False, *limits)
        run.append(case(config_of(dataset), known[name], name, seed, images, parameters or 1))
        console.print(f"{dataset}, seed {seed}: {name}")
    for dataset in datasets:
        nets = by_pair(line for line in run.records if line.network.startswith(f"{dataset}, "))
        if nets:
            run.write_csv(f"{dataset}.csv", *_table(report.rows(config_of(dataset), nets)))
            report.show(config_of(dataset), nets, console)
    console.print(f"Records: {Path(run.folder).resolve()}", soft_wrap=True)
    return 0


def _table(rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return rows[0], rows[1:]


if __name__ == "__main__":
    raise SystemExit(main())
