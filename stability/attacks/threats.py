"""Threat models: which perturbations of an image are allowed, in pixel units of images in [0, 1]."""

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from stability.errors import InputError
from stability.scaling import scaled_norm
from stability.types import Images, PerSample, Threat

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def _check_epsilon(threat: "Linf | L2") -> None:
    epsilon = threat.epsilon
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 <= epsilon < float("inf"):
        raise InputError(f"{type(threat).__name__}: epsilon must be finite and >= 0, in pixel units; got {epsilon!r}")


def check_threat(threat: object) -> None:
    """Refuse what is no threat model, a bare radius above all."""
    if not hasattr(threat, "epsilon") or not hasattr(threat, "project"):
        raise InputError(f"threat must be a threat model such as Linf(8/255) or L2(0.5), got {threat!r}")


def rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values in the shape of `like`, to be multiplied with its samples."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Linf:
    """Every pixel moves by at most epsilon."""

    epsilon: float

    def __post_init__(self) -> None:
        _check_epsilon(self)

    def size(self, delta: Images) -> PerSample:
        """(B,) largest absolute entry of each sample."""
        return delta.flatten(1).abs().amax(1)

    def project(self, delta: Images) -> Images:
        """The nearest perturbation of size <= epsilon, (B, ...)."""
        return delta.clamp(-self.epsilon, self.epsilon)

    def random_start(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """One image's perturbation, uniform in the ball; drawn on the generator's device."""
        return (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) * self.epsilon

    def random_edge(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """One image's perturbation, uniform among the corners of the ball; drawn on the generator's device."""
        return (2 * torch.randint(2, shape, generator=generator, dtype=dtype) - 1) * self.epsilon

    def steepest(self, gradient: Images) -> Images:
        """The step of size 1 along which a loss with this gradient grows fastest, (B, ...)."""
        return gradient.sign()

    def outward(self, inner: Tensor, outer: Tensor, point: Images, centre: Images) -> Tensor:
        """Where the outer of two neighbours of `point` is in the ball and no further from it, (B, ...) bool; float64 all."""
        return ((outer - centre).abs() <= self.epsilon) & ((outer - point).abs() <= (inner - point).abs())


@dataclass(frozen=True)
class L2:
    """The perturbation of an image has Euclidean norm at most epsilon."""

    epsilon: float

    def __post_init__(self) -> None:
        _check_epsilon(self)

    def size(self, delta: Images) -> PerSample:
        """(B,) Euclidean norm of each sample."""
        return scaled_norm(delta)

    def project(self, delta: Images) -> Images:
        """The nearest perturbation of size <= epsilon, (B, ...)."""
        tiny = torch.finfo(delta.dtype).tiny
        return delta * rows((self.epsilon / self.size(delta).clamp_min(tiny)).clamp_max(1), delta)

    def random_start(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """One image's perturbation, uniform in the ball; drawn on the generator's device."""
        edge = self.random_edge(shape, generator, dtype)
        return edge * torch.rand((), generator=generator, dtype=dtype) ** (1 / edge.numel())

    def random_edge(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """One image's perturbation, uniform on the sphere; drawn on the generator's device."""
        direction = torch.randn(shape, generator=generator, dtype=dtype)
        return direction * (self.epsilon / direction.norm().clamp_min(torch.finfo(dtype).tiny))

    def steepest(self, gradient: Images) -> Images:
        """The step of size 1 along which a loss with this gradient grows fastest, (B, ...); 0 where it is 0."""
        # By the largest entry first: squares of small gradients would underflow.
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = gradient / rows(gradient.flatten(1).abs().amax(1).clamp_min(tiny), gradient)
        return scaled / rows(self.size(scaled).clamp_min(tiny), gradient)

    def outward(self, inner: Tensor, outer: Tensor, point: Images, centre: Images) -> Tensor:
        """The pixels whose outer neighbour is to be taken, (B, ...) bool, so that no norm exceeds that of point - centre.

        Those first that gain most along the perturbation for the square that they cost: where a whole ball spreads less than
        half a step of the grid over each pixel, rounding to the nearest would bring every one of them back. float64 all.
        """
        wanted, near, far = (value.flatten(1) for value in (point - centre, (inner - centre).abs(), (outer - centre).abs()))
        cost = far.square() - near.square()
        gain = torch.where(cost > 0, wanted.abs() * (far - near) / cost, -1.0)
        order = gain.argsort(dim=1, descending=True, stable=True)
        spent = torch.where(gain > 0, cost, torch.inf).gather(1, order).cumsum(1)
        budget = wanted.norm(dim=1).clamp_max(self.epsilon).square() * (1 - 1e-12) - near.square().sum(1)
        return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, spent <= budget[:, None]).view_as(point)


def resized(threat: Threat, epsilon: float) -> Threat:
    """The ball of another radius; threats are dataclasses with a field `epsilon`."""
    return replace(cast(Any, threat), epsilon=epsilon)


def shrunk(threat: Threat, x: Images) -> Threat:
    """The threat, smaller by the rounding of x + delta and of the projection: what is projected stays in the ball."""
    unit = torch.finfo(x.dtype).eps
    rounding = unit * float(threat.size(torch.ones_like(x[:1])))
    return resized(threat, max(0.0, threat.epsilon * (1 - 4 * unit) - rounding))


def working_precision(threat: Threat, x: Images) -> torch.dtype:
    """The dtype in which an attack on images x computes: at least float32, and float64 where the ball needs it.

    That of x where it is one of these and `shrunk` takes less than a hundredth of the budget. In bfloat16 the rounding of
    x + delta exceeds 2/255, so that an attack that computed in it would stay at the image.
    """
    own = torch.float64 if x.dtype == torch.float64 else torch.float32
    return own if shrunk(threat, x[:1].to(own)).epsilon >= 0.99 * threat.epsilon else torch.float64


def representable(threat: Threat, point: Images, centre: Images, dtype: torch.dtype) -> Images:
    """`point` of the ball and of [0, 1], rounded to images of `dtype` that lie in the ball too: what a network can be shown.

    The ball around an image of few bits holds few images of as many bits, and a network sees no other ones. Rounded to the
    nearest, x + delta leaves the ball by up to half a step of that grid, in bfloat16 a quarter of 2/255; so each pixel is
    rounded towards `centre` where the ball demands it, and stays on the side of `point` where it does not.

    Args:
        threat: What the result is held to.
        point, centre: (B, ...) in a working precision; the values of `centre` are of `dtype`.

    Returns:
        (B, ...) of `dtype`.
    """
    nearest = point.to(dtype).abs()  # not -0.0, whose bits are those of a negative number
    # Of numbers that are not negative the bits, read as a whole number, ascend: one more is the next one.
    whole = BITS[dtype]
    bits = nearest.view(whole)
    below, above = (side.clamp_min(0).view(dtype).double() for side in (bits - 1, bits + 1))
    nearest, point, centre = nearest.double(), point.double(), centre.double()
    other = torch.where(nearest > point, below, above)  # the neighbour on the other side
    exact, up = nearest == point, point > centre
    low, high = torch.minimum(nearest, other), torch.maximum(nearest, other)
    inner, outer = torch.where(up, low, high), torch.where(up, high, low)
    inner, outer = torch.where(exact, nearest, inner), torch.where(exact, nearest, outer)
    # A solid ball holds what is nearer to its centre in every pixel: `inner` serves any threat.
    image = torch.where(threat.outward(inner, outer, point, centre), outer, inner) if hasattr(threat, "outward") else inner
    return image.to(dtype)


def confine(point: Images, centre: Images, safe: Threat) -> Images:
    """`point` projected into the (shrunk) ball around `centre`, then into [0, 1], which brings it only nearer."""
    return (centre + safe.project(point - centre)).clamp(0, 1)


def held(point: Images, centre: Images, threat: Threat) -> Images:
    """`point` projected into the ball around the images `centre` and into [0, 1], as images of their dtype."""
    precise = centre.to(working_precision(threat, centre))
    inside = confine(point.to(precise.dtype), precise, shrunk(threat, precise))
    return inside if inside.dtype == centre.dtype else representable(threat, inside, precise, centre.dtype)


THREATS = {"linf": Linf, "l2": L2}  # by the names of the command line
