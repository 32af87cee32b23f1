"""Threat models: which perturbations of an image are allowed, in pixel units of images in [0, 1]."""
from dataclasses import dataclass, replace
from numbers import Real

import torch

from stability.errors import InputError


def _check_epsilon(threat):
    epsilon = threat.epsilon
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 <= epsilon < float("inf"):
        raise InputError(f"{type(threat).__name__}: epsilon must be finite and >= 0, in pixel units; got {epsilon!r}")


def check_threat(threat):
    """Refuse what is no threat model, a bare radius above all."""
    if not hasattr(threat, "epsilon") or not hasattr(threat, "project"):
        raise InputError(f"threat must be a threat model such as Linf(8/255) or L2(0.5), got {threat!r}")


def rows(values, like):
    """(B,) values in the shape of `like`, to be multiplied with its samples."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Linf:
    """Every pixel moves by at most epsilon."""

    epsilon: float

    __post_init__ = _check_epsilon

    def size(self, delta):
        """(B,) largest absolute entry of each sample."""
        return delta.flatten(1).abs().amax(1)

    def project(self, delta):
        """The nearest perturbation of size <= epsilon, (B, ...)."""
        return delta.clamp(-self.epsilon, self.epsilon)

    def random_start(self, shape, generator, dtype=torch.float32):
        """One image's perturbation, uniform in the ball; drawn on the generator's device."""
        return (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1) * self.epsilon

    def random_edge(self, shape, generator, dtype=torch.float32):
        """One image's perturbation, uniform among the corners of the ball; drawn on the generator's device."""
        return (2 * torch.randint(2, shape, generator=generator, dtype=dtype) - 1) * self.epsilon

    def steepest(self, gradient):
        """The step of size 1 along which a loss with this gradient grows fastest, (B, ...)."""
        return gradient.sign()


@dataclass(frozen=True)
class L2:
    """The perturbation of an image has Euclidean norm at most epsilon."""

    epsilon: float

    __post_init__ = _check_epsilon

    def size(self, delta):
        """(B,) Euclidean norm of each sample."""
        return delta.flatten(1).norm(dim=1)

    def project(self, delta):
        """The nearest perturbation of size <= epsilon, (B, ...)."""
        tiny = torch.finfo(delta.dtype).tiny
        return delta * rows((self.epsilon / self.size(delta).clamp_min(tiny)).clamp_max(1), delta)

    def random_start(self, shape, generator, dtype=torch.float32):
        """One image's perturbation, uniform in the ball; drawn on the generator's device."""
        edge = self.random_edge(shape, generator, dtype)
        return edge * torch.rand((), generator=generator, dtype=dtype) ** (1 / edge.numel())

    def random_edge(self, shape, generator, dtype=torch.float32):
        """One image's perturbation, uniform on the sphere; drawn on the generator's device."""
        direction = torch.randn(shape, generator=generator, dtype=dtype)
        return direction * (self.epsilon / direction.norm().clamp_min(torch.finfo(dtype).tiny))

    def steepest(self, gradient):
        """The step of size 1 along which a loss with this gradient grows fastest, (B, ...); 0 where it is 0."""
        # By the largest entry first: squares of small gradients would underflow.
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = gradient / rows(gradient.flatten(1).abs().amax(1).clamp_min(tiny), gradient)
        return scaled / rows(self.size(scaled).clamp_min(tiny), gradient)


def shrunk(threat, x):
    """The threat, smaller by the rounding of x + delta and of the projection: what is projected stays in the ball."""
    unit = torch.finfo(x.dtype).eps
    rounding = unit * float(threat.size(torch.ones_like(x[:1])))
    return replace(threat, epsilon=max(0.0, threat.epsilon * (1 - 4 * unit) - rounding))


def confine(point, centre, safe):
    """`point` projected into the (shrunk) ball around `centre`, then into [0, 1], which brings it only nearer."""
    return (centre + safe.project(point - centre)).clamp(0, 1)


THREATS = {"linf": Linf, "l2": L2}  # by the names of the command line
