"""How often the audit is right: networks that only seem robust, each beside its honest twin, and honest networks.

On the page every mask is on one of two nets, one or two of ours stand for a kind of theirs, and honest nets are audited once;
`run.py --only audit_all` takes them all. No data beyond scikit-learn's digits. What a mask gains is accuracy under PGD-20; what
passes must not gain more than a few points, and an honest network must pass.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
import stability
from experiments.benchmarks.attacks import robust
from experiments.benchmarks.timing import TRAINING, Row, Rows, share
from experiments.harness.training import data
from experiments.harness.training import loop as training

EPSILON, IMAGES, GAIN_IMAGES = 0.1, 64, 128
CLASSES, PIXELS = 10, 64
Make = Callable[[], nn.Module]
Function = Callable[[Tensor], Tensor]
Mask = Callable[[nn.Module], nn.Module]


class Masked(nn.Module):
    """A network between two functions."""

    def __init__(self, net: nn.Module, before: Function | None = None, after: Function | None = None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.after(self.net(self.before(x)))


def perceptron(activation: Make = nn.ReLU) -> nn.Module:
    """A new multilayer perceptron for digits."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, CLASSES)
    )


def convolutional(activation: Make = nn.ReLU, between: Make = nn.Identity, pool: Make = nn.Identity) -> nn.Module:
    """A new convolutional net for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1),
        between(),
        activation(),
        nn.Conv2d(12, 24, 3, 2, 1),
        between(),
        activation(),
        pool(),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


@cache
def digits() -> data.Data:
    """scikit-learn's digits."""
    return data.load("digits")


@cache
def trained(make: Make, epochs: int = 8, epsilon: float | None = None, seed: int = 0) -> nn.Module:
    """A network on digits, in eval mode; with a radius, trained on PGD with 5 steps."""
    torch.manual_seed(seed)
    net = make()
    net(digits().train.images[:2])  # lazy layers learn their sizes
    settings = replace(TRAINING, epochs=epochs)
    if epsilon is not None:
        settings = replace(settings, training="pgd", train_epsilon=epsilon, train_steps=5)
    training.train(net, digits(), settings, seed)
    return net


@cache
def _integrated(scheme: str, epochs: int) -> nn.Module:
    return trained(partial(odenets.ode_resnet_small, scheme=scheme), epochs)


def _ours(scheme: str, trained_with: str | None = None, gradient: str = "exact", epochs: int = 8) -> nn.Module:
    net = copy.deepcopy(_integrated(trained_with or scheme, epochs))
    odenets.set_scheme(net, scheme)
    odenets.set_gradient(net, gradient)
    return net


def _rounded(x: Tensor, levels: float) -> Tensor:
    return (x * levels).round() / levels


def _straight_through(x: Tensor, levels: float) -> Tensor:
    return x + (_rounded(x, levels) - x).detach()


def _rounded_cosines(x: Tensor, step: float) -> Tensor:
    row = torch.arange(8, dtype=x.dtype, device=x.device)
    transform = torch.cos(torch.pi * (2 * row + 1) * row[:, None] / 16) / 2
    transform[0] /= 2**0.5
    return transform.T @ ((transform @ x @ transform.T / step).round() * step) @ transform


def _before(function: Callable[..., Tensor], *settings: tuple) -> list[Mask]:
    return [partial(Masked, before=_at(function, own)) for own in settings]


def _after(function: Callable[..., Tensor], *settings: tuple) -> list[Mask]:
    return [partial(Masked, after=_at(function, own)) for own in settings]


def _at(function: Callable[..., Tensor], own: tuple) -> Function:
    return lambda x: function(x, *own)


LEVELS = [(levels,) for levels in (4, 16, 64, 256)]
MASKS: dict[str, list[Mask]] = {  # what is done to a network: a list of functions of one
    "rounded images": _before(_rounded, *LEVELS),
    "rounded logits": _after(_rounded, *LEVELS),
    "rounded straight-through": _before(_straight_through, *LEVELS) + _after(_straight_through, *LEVELS),
    "rounded cosine transform": _before(_rounded_cosines, (0.05,), (0.3,)),
    "noise": [
        *_before(lambda x, s: x + s * torch.randn_like(x), (0.003,), (0.03,), (0.1,)),
        *_after(lambda x, s: x + s * torch.randn_like(x), (0.03,), (0.1,)),
    ],
    "dropout left on": _before(lambda x, p: F.dropout(x, p, training=True), (0.03,), (0.1,), (0.3,)),
    "logits times 20 to 1e4": _after(torch.mul, (20.0,), (50.0,), (100.0,), (1e3,), (1e4,)),
    "logits over 1e3 to 1e8": _after(torch.div, (1e3,), (1e4,), (1e6,), (1e8,)),
    "softmax of scaled logits": _after(lambda x, s: (s * x).softmax(1), (10,), (100,)),
    "logits behind a tanh": _after(lambda x, s: torch.tanh(s * x), (1,), (10,)),
    "images plus a fast sine": _before(lambda x, a, w: x + a * torch.sin(w * x), (0.03, 100), (0.03, 1000), (0.1, 30)),
    "logits lean on neighbours": _after(
        lambda x, f: x - f(x), (lambda x: x.mean(0),), (lambda x: x[:1] / 2,), (lambda x: x.roll(1, 0) / 2,)
    ),
    "logits without a gradient": _after(lambda x, f: f(x), (torch.detach,), (lambda x: x.detach().clone().requires_grad_(),)),
}
STARTED_WITH = "implicit(tol=1e-2)"
SCHEMES: dict[str, list[tuple[str, str | None, str]]] = {  # what is done to a net of ours: (scheme, trained with, gradient)
    "detached gradient": [
        (f"ie_skip(gamma={gamma},iterations={count})", None, "detached") for gamma in (0.05, 0.1) for count in (1, 2, 5)
    ]
    + [("implicit", STARTED_WITH, "detached")],
    "loose tolerance": [(f"implicit(tol={tol})", STARTED_WITH, "exact") for tol in (0.1, 0.3)],
    "too few iterations": [(f"implicit(max_iterations={count})", STARTED_WITH, "exact") for count in (1, 2, 3)],
}
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.Softplus)
HONEST: list[Callable[[], nn.Module]] = [
    *[partial(trained, partial(make, activation)) for make in (perceptron, convolutional) for activation in ACTIVATIONS],
    partial(trained, partial(convolutional, between=nn.LazyBatchNorm2d)),
    partial(trained, partial(convolutional, pool=partial(nn.MaxPool2d, 2))),
    partial(trained, lambda: nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))),
    partial(trained, convolutional, 1),
    partial(trained, convolutional, 40),
    *[partial(trained, convolutional, 8, epsilon) for epsilon in (0.05, 0.1, 0.2, 0.3)],
    *[partial(_ours, scheme) for scheme in ("explicit", "ie_skip(gamma=0.05)", STARTED_WITH)],
    partial(_ours, "ie_skip(gamma=0.1,iterations=2)"),
    partial(_ours, "implicit", STARTED_WITH),
    partial(_ours, "rk4", "explicit"),
    partial(_ours, "heun", "explicit"),
    partial(_ours, "trapezoid", STARTED_WITH),
    partial(_ours, "ab2", "explicit"),
]
PAGE, PART = -6, 6  # the page leaves out so many of ours at the end, and takes every so many of a kind of masks of ours
HONEST_AT = ((32, 0.3), (64, 0.1), (128, 0.03))  # images, radius


def _images(device: torch.device, count: int) -> tuple[Tensor, Tensor]:
    test = digits().test.first(count).to(device)
    return test.images, test.labels


def _seeming(net: nn.Module, device: torch.device, smoke: bool) -> float:
    """Accuracy in percent as a plain PGD-20 along the net's own gradient finds it."""
    x, y = _images(device, 16 if smoke else GAIN_IMAGES)
    try:
        x = stability.pgd(net, x, y, stability.Linf(EPSILON))
    except ValueError:  # no gradient at all
        pass
    return robust(net, x, y)


def _failed(net: nn.Module, device: torch.device, count: int, epsilon: float) -> list[str]:
    x, y = _images(device, count)
    audit = stability.audit(net, x, y, stability.Linf(epsilon))
    return [check.name for check in audit.checks if check.passed is False]


def _caught(kind: str, pairs: list[tuple[nn.Module, nn.Module]], device: torch.device, smoke: bool) -> Row:
    """(figure, gain of the worst miss, what is tolerated) of masked networks, each beside its honest twin."""
    gains, passed = list[float](), list[float]()
    by: Counter[str] = Counter()
    honest = {twin: _seeming(twin.to(device), device, smoke) for twin in {twin for _, twin in pairs}}
    torch.manual_seed(0)  # of the masks that draw noise
    for net, twin in pairs:
        net = net.to(device)
        failed = _failed(net, device, 16 if smoke else IMAGES, EPSILON)
        gains.append(_seeming(net, device, smoke) - honest[twin])
        by.update(failed)
        passed += [] if failed else gains[-1:]
    names = ", ".join(name for name, _ in by.most_common(3))
    note = f"{len(gains) - len(passed)} of {len(gains)} caught, by {names}; gain {min(gains):.0f} to {max(gains):.0f} points"
    return Row(f"{kind}: largest gain of those that pass, points", max(passed, default=0.0), 5.0, note=note)


def masks(device: torch.device, smoke: bool, whole: bool = False) -> Rows:
    """Networks of plain torch behind a mask; the gain is in accuracy under PGD-20."""
    for kind, functions in list(MASKS.items())[: 6 if smoke else None]:
        bases = [trained(make, 1 if smoke else 8) for make in (perceptron, convolutional)[: 1 if smoke else 2]]
        pairs = [(mask(base), base) for mask in functions[: 1 if smoke else None] for base in bases]
        yield _caught(kind, pairs if whole else pairs[:: len(bases) + 1] or pairs[:1], device, smoke)


def schemes(device: torch.device, smoke: bool, whole: bool = False) -> Rows:
    """Nets of ours whose gradient or solve is not what it should be, beside the net they were trained as."""
    for kind, cases in list(SCHEMES.items())[: 1 if smoke else None]:
        epochs, chosen = 1 if smoke else 8, cases if whole else cases[::PART]
        pairs = [
            (_ours(scheme, origin, gradient, epochs), _integrated(origin or scheme, epochs))
            for scheme, origin, gradient in chosen[: 1 if smoke else None]
        ]
        yield _caught(kind, pairs, device, smoke)


def honest(device: torch.device, smoke: bool, whole: bool = False) -> Rows:
    """Networks that hide nothing: an alarm is false, or tells that PGD-20 is too weak for that network."""
    alarms, audits, failed = Counter[str](), 0, 0
    for index, make in enumerate(HONEST[: 1 if smoke else None if whole else PAGE]):
        for count, epsilon in HONEST_AT if whole else HONEST_AT[index % len(HONEST_AT) :][:1]:
            names = _failed(make().to(device), device, count, epsilon)
            alarms.update(names)
            audits, failed = audits + 1, failed + bool(names)
    told = f": {', '.join(f'{name} {number}' for name, number in alarms.items())}" if alarms else ""
    yield share("honest networks: audits that fail", failed, audits, 0.05, f"{failed} of {audits}{told}")
