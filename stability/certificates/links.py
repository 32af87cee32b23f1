"""A network as a chain of links, each with what is proven of it: a whitelist by type; what is not on it is refused by name.

A link maps computed states to computed states in float64. Its `Bounds` say what the exact map does to distances, how long
states can be, and how far rounding moves the result from the exact one: the standard model of floating-point arithmetic, sums
of n terms off by gamma_n = n u/(1 - n u) of the sum of their moduli, in whatever order. Source: Higham (2002), Accuracy and
stability of numerical algorithms, sections 2.2 and 3.1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from odenets.nets.certifiable import CayleyConv, Centre, MaxMin, PadChannels, ScaledPool, UnitRows
from odenets.nets.monotone import GradientFlow, InfMonotone, Monotone, Shape, Skew
from odenets.nets.stage import ODEStage
from odenets.schemes.runge_kutta import RungeKutta
from odenets.schemes.splitting import Splitting
from stability.certificates.moves import Bounds, Move, gamma, moves
from stability.errors import InputError

FIELDS = (Skew, GradientFlow, Monotone, InfMonotone)
HEADS = (nn.Linear, UnitRows)


class Link(ABC):
    """A layer, its name, the shape of its states before it, and its bounds for states of at most some norm."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module: Any = module  # of the type that `KINDS` pairs with this link
        self.moves: tuple[Move, ...] = ()

    @abstractmethod
    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """What is proven for states of `shape` with ||y||_p <= norm."""

    def __call__(self, y: Tensor) -> Tensor:
        """The layer itself, past any hook."""
        return type(self.module).forward(self.module, y)


class Isometry(Link):
    """Moves entries about, sorts some, or adds zeros: exact, no distance grows, and norms are kept, in every norm."""

    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """See `Link.bounds`."""
        return Bounds(1.0, norm, 0.0)


class Shift(Link):
    """y - value."""

    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """See `Link.bounds`."""
        ones = math.prod(shape) ** (1 / p)
        longest = norm + abs(self.module.value) * ones
        return Bounds(1.0, longest, gamma(2) * longest)


class Pool(Link):
    """Average pooling times its size: norm 1 in L2, `size` in L-infinity."""

    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """See `Link.bounds`."""
        size = self.module.size
        if any(pixels % size for pixels in shape[1:]):
            raise InputError(f"layer {self.name!r}: windows of {size} pixels do not tile an image of {shape[1:]}")
        factor = 1.0 if p == 2 else float(size)
        return Bounds(factor, factor * norm, gamma(size**2 + 4) * factor * norm)


class Mix(Link):
    """A 1x1 convolution by a matrix, whatever its norm turns out to be."""

    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """See `Link.bounds`."""
        matrix = self.matrix = self.module.matrix().detach()  # kept: the bounds are for this one
        factor = torch.linalg.matrix_norm(matrix, p).item() * (1 + 1e-10)
        modulus = torch.linalg.matrix_norm(matrix.abs(), p).item() * (1 + 1e-10)
        return Bounds(factor, factor * norm, gamma(matrix.shape[1] + 2) * modulus * norm)

    def __call__(self, y: Tensor) -> Tensor:
        """The convolution by that matrix."""
        return F.conv2d(y, self.matrix[:, :, None, None])


class Stage(Link):
    """The steps of a stage, one move after the other."""

    def bounds(self, shape: tuple[int, ...], norm: float, p: float, tau: float) -> Bounds:
        """See `Link.bounds`; also lays the moves out for these states."""
        stage = self.module
        if type(stage.scheme) not in (RungeKutta, Splitting):
            raise InputError(f"layer {self.name!r}: its scheme {stage.scheme} is no Runge-Kutta method and no splitting of two")
        for n, field in enumerate(stage.fields):
            if type(field) not in FIELDS:
                raise InputError(f"layer {self.name!r}: its field {n} is a {type(field).__name__}, of which nothing is proven")
            for name, module in field.named_modules():
                _check_plain(f"{self.name}.fields.{n}.{name}", module)
                if type(module) not in FIELDS:
                    _check_convolution(f"{self.name}.fields.{n}.{name}", module)
        try:
            self.moves = moves(stage, cast(Shape, shape), p)  # of convolutions, and so of images
        except InputError as error:
            raise InputError(f"layer {self.name!r}: {error}") from error
        factor, rounding, deployed = 1.0, 0.0, 0.0
        for move in self.moves:
            step = move.bounds(norm, tau)
            factor, norm = factor * step.factor, step.norm
            rounding, deployed = rounding * step.factor + step.rounding, deployed * step.factor + move.residual * tau
        return Bounds(factor, norm, rounding, deployed)

    def __call__(self, y: Tensor) -> Tensor:
        """Refuses: moves are what a residual belongs to."""
        raise NotImplementedError("a stage is walked move by move")


KINDS: dict[type, type[Link]] = {
    Centre: Shift,
    nn.PixelUnshuffle: Isometry,
    nn.Flatten: Isometry,
    PadChannels: Isometry,
    MaxMin: Isometry,
    ScaledPool: Pool,
    CayleyConv: Mix,
    ODEStage: Stage,
}


def links(net: nn.Module) -> tuple[list[Link], str, nn.Module]:
    """(the links before the head, the head's name, the head) of a chain of layers that are all on the list.

    Raises:
        ValueError: A layer is not on the list, or is not what its type says: a hook, a parametrisation, a method of its own.
    """
    layers = list(_flat("", net))
    if not layers or type(layers[-1][1]) not in HEADS:
        last = layers[-1] if layers else ("", net)
        raise InputError(
            f"the last layer {last[0]!r} is a {type(last[1]).__name__}: a certificate needs a linear head, "
            f"{' or '.join(kind.__name__ for kind in HEADS)}, for the distances of its rows"
        )
    chain = []
    for name, layer in layers:
        _check_plain(name, layer)
    for name, layer in layers[:-1]:
        if type(layer) not in KINDS:
            raise InputError(
                f"layer {name!r} is a {type(layer).__name__}, of which nothing is proven; what is: "
                f"{', '.join(kind.__name__ for kind in KINDS)}, and at the end {' or '.join(kind.__name__ for kind in HEADS)}"
            )
        if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
            raise InputError(f"layer {name!r} flattens more than one image: Flatten(1, -1) alone keeps images apart")
        chain.append(KINDS[type(layer)](name, layer))
    return chain, *layers[-1]


def _flat(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        _check_plain(name, module)
        for child, layer in module._modules.items():  # a layer that stands twice is two links
            yield from _flat(f"{name}.{child}" if name else child, layer)
    else:
        yield name, module


def _check_plain(name: str, module: nn.Module) -> None:
    """Refuse a module that does something else than its type."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    own = {"forward", "constants", "kernel", "matrix", "parts", "weight"} & vars(module).keys()
    if hooks or own or is_parametrized(module):
        what = "has forward hooks" if hooks else "is parametrised" if not own else f"has a {own.pop()} of its own"
        raise InputError(
            f"layer {name!r} ({type(module).__name__}) {what}, of which nothing is proven: remove it, and bring the weights to "
            "what it made of them"
        )


def _check_convolution(name: str, conv: nn.Module) -> None:
    settings = [getattr(conv, key, None) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")]
    if type(conv) is not nn.Conv2d or tuple(settings) != ((3, 3), (1, 1), (1, 1), (1, 1), "zeros"):
        raise InputError(
            f"layer {name!r} is no 3x3 convolution with stride 1 and zero padding, for which the bounds are: {conv}"
        )


@dataclass(frozen=True)
class Head:
    """The last layer: rows, biases, and how far rows lie apart in the dual norm."""

    weight: Tensor
    bias: Tensor
    distances: Tensor  # (classes, classes)
    rounding: float  # of a logit

    @classmethod
    def of(cls, head: Any, norm: float, p: float) -> "Head":
        """The head of features with ||y||_p <= norm."""
        weight = head.weight.detach()
        bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device) if head.bias is None else head.bias.detach()
        dual = 2 if p == 2 else 1
        distances = torch.linalg.vector_norm(weight[:, None] - weight[None], dual, dim=2) * (1 + 1e-12)
        longest = torch.linalg.vector_norm(weight, dual, dim=1).max().item() * norm + bias.abs().max().item()
        return cls(weight, bias, distances, gamma(weight.shape[1] + 3) * longest)

    def __call__(self, features: Tensor) -> Tensor:
        """Logits."""
        return features @ self.weight.mT + self.bias
