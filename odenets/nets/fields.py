"""Vector fields f(t, y) of residual networks: the paper's block, and fields whose logarithmic norm is bounded.

mu_2(J) is the rightmost eigenvalue of (J + J^T)/2; two solutions part no faster than exp(t mu_2). A stable scheme keeps what
the flow contracts and no more, so where stability shall matter the field itself must not expand. Every field has
`mu_bound(y)`: a proven upper bound of mu_2 at the state y. GroupNorm's Jacobian grows as 1/std(y), so that blocks with it
have a bound at each state only; the antisymmetric field and those of `odenets.nets.monotone` do without, and theirs holds
everywhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from odenets.errors import InputError
from odenets.nets.convolution import operator_bound
from odenets.nets.layers import Layers, basic_layers, norm_relu
from odenets.nets.layers import bottleneck_layers as bottleneck_layers
from odenets.nets.monotone import GradientFlow, InfMonotone, Monotone, Skew
from odenets.own import find_own, is_own
from odenets.specs import canonical, read_arguments, read_name
from odenets.types import PerSample, Time

State = Float[Tensor, "batch channels height width"]


@torch.no_grad()
def _product_of_norms(layers: nn.Sequential, y: State) -> PerSample:
    bound = torch.ones(len(y), dtype=y.dtype, device=y.device)
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            bound *= layer.weight.abs().max() / (y.flatten(1).var(1, correction=0) + layer.eps).sqrt()
        elif isinstance(layer, nn.Conv2d):
            bound *= operator_bound(layer.weight)
        y = layer(y)
    return bound


class Block(nn.Module):
    """An autonomous field f(t, y) = layers(y) with as many channels out as in.

    Args:
        layers: `basic_layers` or `bottleneck_layers`.
        channels: Channels of the state.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.layers = layers(channels, channels)

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return self.layers(y)

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2 at y: mu_2 <= ||J|| <= the product of the norms of the layers, each at its own input.

        GroupNorm with one group: J = diag(g) (P - u u^T/n)/s, where P takes the mean away, s^2 = var + eps and u is the
        normalised state; 0 <= u^T u <= n, so ||J|| <= max|g|/s.
        """
        return _product_of_norms(self.layers, y)


class Damped(nn.Module):
    """f(t, y) = layers(y) - rate y: all eigenvalues of the paper's block moved to the left by `rate`; same parameters.

    mu_2 is that of the block minus `rate`, exactly, for the identity commutes with all; as a bound, that of the block minus
    `rate`. Source: Soderlind (2006), BIT 46, mu(A + c I) = mu(A) + c.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        self.layers, self.rate = layers(channels, channels), rate

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return self.layers(y) - self.rate * y

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2 at y."""
        return _product_of_norms(self.layers, y) - self.rate

    def extra_repr(self) -> str:
        """Parameters for print(net)."""
        return f"rate={self.rate:g}"


class Antisymmetric(nn.Module):
    """f(t, y) = s((K - K^T - g I) y + b): one convolution K, its transpose with the same weights, s a leaky ReLU.

    With A = K - K^T and D = diag(s'), m <= D <= 1, the Jacobian is D (A - g I).
    Its eigenvalues are those of D^(1/2) (A - g I) D^(1/2), whose symmetric part is -g D: Re lambda <= -g m.
    Its mu_2 may be positive all the same: the symmetric part is (D A - A D)/2 - g D, and A commutes with the middle of the
    interval that holds D, which leaves ||D A - A D|| <= (1 - m) ||A||. Hence mu_2 <= (1 - m) ||A||/2 - g m. With m = 1 the
    field is linear, and mu_2 = -g. Nothing better is to be had: a field with J + J^T = 0 everywhere is affine.

    Args:
        layers: `basic_layers`; with `bottleneck_layers` K has 4 groups, which keeps its size near theirs.
        channels: Channels of the state.
        shift: g.
        slope: m, of s where its argument is negative.

    Source: Chang, Chen, Haber, Chi (2019), AntisymmetricRNN; Haber & Ruthotto (2017), Stable architectures for deep neural
    networks. The bounds: the lines above.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int, shift: float = 0.1, slope: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=1 if layers is basic_layers else 4)
        self.shift, self.slope = shift, slope

    def kernel(self) -> Float[Tensor, "channels inputs 3 3"]:
        """Weights of A = K - K^T: the transposed convolution is one with inputs and outputs exchanged and both axes flipped."""
        weight, g = self.conv.weight, self.conv.groups
        grouped = weight.view(g, -1, *weight.shape[1:])
        return (grouped - grouped.transpose(1, 2).flip(-1, -2)).view_as(weight)

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        turned = F.conv2d(y, self.kernel(), self.conv.bias, padding=1, groups=self.conv.groups)
        return F.leaky_relu(turned - self.shift * y, self.slope)

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2, the same at every state."""
        bound = (1 - self.slope) / 2 * operator_bound(self.kernel(), self.conv.groups) - self.shift * self.slope
        return bound.expand(len(y))

    def extra_repr(self) -> str:
        """Parameters for print(net)."""
        return f"shift={self.shift:g}, slope={self.slope:g}"


# name: (module, {parameter: (default, highest value)}); no parameter may be negative.
FIELDS: dict[str, tuple[Callable[..., nn.Module], dict[str, tuple[float, float]]]] = {
    "residual": (Block, {}),
    "damped": (Damped, {"rate": (0.5, math.inf)}),
    "antisymmetric": (Antisymmetric, {"shift": (0.1, math.inf), "slope": (0.1, 1.0)}),
    "gradient_flow": (GradientFlow, {}),
    "skew": (Skew, {}),
    "monotone": (Monotone, {}),
    "inf_monotone": (InfMonotone, {}),
}


@dataclass(frozen=True)
class Field:
    """A field by its spec; `str` gives the canonical one. values: the parameters, in declared order."""

    name: str
    values: tuple[Any, ...]

    def build(self, layers: Layers, channels: int) -> nn.Module:
        """A new module f(t, y) on states with `channels` channels, of the size of `layers`."""
        settings = {key: value for key, (value, _) in self.parameters.items()}
        if not is_own(self.name):
            return FIELDS[self.name][0](layers, channels, **settings)
        field = find_own(self.name, "field").call(layers=layers, channels=channels, **settings)
        if not isinstance(field, nn.Module):
            raise InputError(f"{self.name} gave a {type(field).__name__}; a field is a torch.nn.Module f(t, y)")
        return field

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """{name: (value, default)} in declared order."""
        return {key: (value, default) for (key, default), value in zip(_defaults(self.name).items(), self.values)}

    def __str__(self) -> str:
        return canonical(self.name, self.parameters)


def _defaults(name: str) -> dict[str, Any]:
    """{parameter: default} of a field, in declared order."""
    if is_own(name):
        return find_own(name, "field").declared(("layers", "channels"))
    return {key: default for key, (default, _) in FIELDS[name][1].items()}


def list_fields() -> list[str]:
    """Names of all fields; each constructs without parameters."""
    return list(FIELDS)


def get_field(spec: str | Field) -> Field:
    """The field that a spec names: "residual", "damped(rate=1)", "antisymmetric(shift=0.1,slope=0.1)", "gradient_flow".

    "path/to/file.py:NAME" is a callable of layers and channels (arguments of that name) that returns a module f(t, y).

    Raises:
        ValueError: Malformed spec, unknown name or parameter, or a value out of range.
    """
    if isinstance(spec, Field):
        return spec
    if is_own(spec):
        part = find_own(spec, "field")
        known = _defaults(part.spec)
        settings = part.settings(known)
        return Field(part.spec, tuple(settings.get(key, default) for key, default in known.items()))
    name, arguments = read_name(spec, "field", list_fields(), {})
    declared = FIELDS[name][1]
    given = read_arguments(spec, "field", arguments, {key: default for key, (default, _) in declared.items()})
    for key, value in given.items():
        highest = declared[key][1]
        if not (0 <= value <= highest and math.isfinite(value)):
            limit = "finite" if highest == math.inf else f"at most {highest:g}"
            raise InputError(f"{key} in the field {spec!r} must be at least 0 and {limit}, got {value}")
    return Field(name, tuple(given.get(key, default) for key, (default, _) in declared.items()))


class Transition(nn.Module):
    """The first block of a stage where the shape changes: shortcut(y) + layers(y), explicit under every scheme.

    Args:
        layers: `basic_layers` or `bottleneck_layers`.
        inputs, outputs: Channels before and after.
        stride: Of the first (basic) or 3x3 (bottleneck) convolution, and of the 3x3 projection shortcut.
    """

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = layers(inputs, outputs, stride)
        self.shortcut = nn.Sequential(*norm_relu(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))

    def forward(self, y: State) -> Float[Tensor, "batch outputs smaller_height smaller_width"]:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return self.shortcut(y) + self.layers(y)
