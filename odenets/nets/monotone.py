"""Fields with proofs: what they do to the distance of two states is known everywhere, in the norms in which it is.

A field f is monotone in a norm (to be exact: -f is) where its logarithmic norm mu is at most 0, so that no two solutions part.
Whether the steps of a scheme part is for `stability.contraction` to say, from the `Constants` of the field.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from odenets.errors import InputError
from odenets.nets.convolution import operator_bound
from odenets.nets.layers import Layers, basic_layers
from odenets.solve.skew import SkewOperator
from odenets.types import Field, PerSample, State, Time

Shape = tuple[int, int, int]  # of a state: channels, height, width


@dataclass(frozen=True)
class Constants:
    """What is proven of an autonomous field f in one norm, for all pairs of states; the defaults say nothing.

    mu: one-sided Lipschitz constant, the largest logarithmic norm of the Jacobian.
    forward: the largest h at which y + h f(y) is proven non-expansive. In L2 that is cocoercivity,
        <f(x) - f(y), x - y> <= -(forward/2) ||f(x) - f(y)||^2, and 2/forward the L of gradient flows.
    lipschitz: ||f(x) - f(y)|| <= lipschitz ||x - y||.
    skew: f(y) = S y with S = -S^T.
    magnitude, offset: f, each of its numbers by its modulus, is at most magnitude ||y|| + offset at states of the shape that
        was asked for; so bounded is what rounding errors are relative to.
    operations: how many roundings stand one after the other on the way to an entry of f.
    reason: why the first three hold.
    """

    mu: float = math.inf
    forward: float = 0.0
    lipschitz: float = math.inf
    skew: bool = False
    magnitude: float = math.inf
    offset: float = math.inf
    operations: int = 0
    reason: str = "nothing is proven of it in this norm"


def check_norm(p: float) -> None:
    """Refuse what is neither 2 nor infinity."""
    if p not in (2, math.inf):
        raise InputError(f"p must be 2 or inf, got {p!r}")


class Skew(nn.Module):
    """f(t, y) = S y, S = K - K^T: a convolution less its transpose, linear, with ||y|| kept by the flow; mu_2 = 0.

    Explicit Euler expands at every h; implicit midpoint is the Cayley transform of S, exactly orthogonal, and an exponential
    scheme the skew-orthogonal convolution.

    Args:
        layers: `basic_layers`; with `bottleneck_layers` K has 4 groups, which keeps its size near theirs.
        channels: Channels of the state.

    Source: Trockman & Kolter (2021), Orthogonalizing convolutional layers with the Cayley transform; Singla & Feizi (2021),
    Skew orthogonal convolutions.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=1 if layers is basic_layers else 4, bias=False)

    def kernel(self) -> Float[Tensor, "channels inputs 3 3"]:
        """Weights of S; exactly skew in floating point too, for a - b rounds to minus what b - a rounds to."""
        weight, g = self.conv.weight, self.conv.groups
        grouped = weight.view(g, -1, *weight.shape[1:])
        return (grouped - grouped.transpose(1, 2).flip(-1, -2)).view_as(weight)

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return self._product(self.kernel(), y)

    def _product(self, kernel: Tensor, y: State) -> State:
        return F.conv2d(y, kernel, padding=1, groups=self.conv.groups)

    def as_skew(self) -> SkewOperator:
        """S, as the equations of implicit steps want it: with its weights apart, made once a step."""
        return SkewOperator(self.kernel(), self._product)

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2: 0 at every state."""
        return torch.zeros(len(y), dtype=y.dtype, device=y.device)

    def constants(self, p: float, shape: Shape | None = None) -> Constants:
        """In L2; no norm but that is kept."""
        check_norm(p)
        if p != 2:
            return Constants()
        kernel = self.kernel()
        norm = _norm(kernel, shape, self.conv.groups)
        return Constants(
            mu=0.0,
            lipschitz=norm,
            skew=True,
            magnitude=_modulus(kernel, self.conv.groups),
            offset=0.0,
            operations=kernel[0].numel() + 2,
            reason="it is linear and skew: <S y, y> = 0",
        )


class GradientFlow(nn.Module):
    """f(t, y) = -K^T relu(K y + b): minus the gradient of the convex function |relu(K y + b)|^2/2.

    J = -K^T D K with 0 <= D <= 1 is symmetric with eigenvalues in [-||K||^2, 0]: mu_2 <= 0. So <f(x) - f(y), x - y> <= 0, and
    two steps of an algebraically stable scheme never part, however large h. Explicit Euler's do not if h <= 2/||K||^2.

    Args:
        layers: `basic_layers`: K maps to twice the channels; `bottleneck_layers`: to a quarter of them.
        channels: Channels of the state.

    Source: Ruthotto & Haber (2020), Deep neural networks motivated by partial differential equations; Hairer & Wanner II
    (1996), section IV.12, for algebraic stability; Sherry et al. (2024), Designing stable neural networks using convex analysis
    and ODEs, for explicit steps.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels if layers is basic_layers else channels // 4, 3, padding=1)

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return -F.conv_transpose2d(F.relu(self.conv(y)), self.conv.weight, padding=1)

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2: 0 at every state."""
        return torch.zeros(len(y), dtype=y.dtype, device=y.device)

    def explicit_step(self) -> float:
        """2/||K||^2 with the bound for the norm: up to this h explicit Euler is non-expansive."""
        return 2 / operator_bound(self.conv.weight).item() ** 2

    def constants(self, p: float, shape: Shape | None = None) -> Constants:
        """In L2, tighter where the shape of the states is known; nothing is proven in L-infinity."""
        check_norm(p)
        if p != 2:
            return Constants()
        weight = self.conv.weight
        square, modulus = _norm(weight, shape) ** 2, _modulus(weight)
        return Constants(
            mu=0.0,
            forward=2 / square if square else math.inf,
            lipschitz=square,
            magnitude=modulus**2,
            offset=modulus * _bias_norm(self.conv.bias, shape),
            operations=weight[0].numel() + weight[:, 0].numel() + 4,
            reason="it is minus the gradient of a convex function, whose gradient is ||K||^2-Lipschitz (Baillon & Haddad 1977)",
        )


class Monotone(nn.Module):
    """f(t, y) = S y - K^T relu(K y + b), S skew: the sum of a `Skew` and a `GradientFlow`; mu_2 <= 0.

    Implicit midpoint on monotone fields gives all non-expansive maps. A splitting scheme takes its parts one after the other:
    rotations that keep distances, and an explicit step that contracts them.

    Args:
        layers: `basic_layers` or `bottleneck_layers`, as of the parts.
        channels: Channels of the state.

    Source: Bauschke & Combettes (2017), Convex analysis and monotone operator theory, corollary 23.9 (Minty).
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.skew, self.flow = Skew(layers, channels), GradientFlow(layers, channels)

    @property
    def parts(self) -> tuple[Field, Field]:
        """(skew, dissipative), which add up to the field: what a splitting scheme asks for."""
        return self.skew, self.flow

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return self.skew(t, y) + self.flow(t, y)

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2: 0 at every state."""
        return self.flow.mu_bound(y)

    def constants(self, p: float, shape: Shape | None = None) -> Constants:
        """In L2: the sum of those of the parts."""
        skew, flow = self.skew.constants(p, shape), self.flow.constants(p, shape)
        if p != 2:
            return Constants()
        return Constants(
            mu=0.0,
            lipschitz=skew.lipschitz + flow.lipschitz,
            magnitude=skew.magnitude + flow.magnitude,
            offset=flow.offset,
            operations=max(skew.operations, flow.operations) + 1,
            reason="it is the sum of a skew part and of minus the gradient of a convex function",
        )


class InfMonotone(nn.Module):
    """f(t, y) = relu(W y + b) with w_ii + sum_{j != i} |w_ij| <= 0 by construction: mu_inf(W) <= 0, and so mu_inf(f) <= 0.

    With 0 <= D <= 1 row i of D W has d_i (w_ii + sum |w_ij|) <= 0, on every grid, for zero padding only takes entries away.
    Implicit Euler is non-expansive in L-infinity at every h, explicit Euler for h <= 1/max |w_ii|, midpoint for twice that.

    Args:
        layers: `basic_layers`; with `bottleneck_layers` W has 4 groups.
        channels: Channels of the state.

    Source: Jafarpour, Davydov, Proskurnikov, Bullo (2021), Robust implicit networks via non-Euclidean contractions; Soderlind
    (2006), BIT 46, for mu.
    """

    autonomous = True

    def __init__(self, layers: Layers, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=1 if layers is basic_layers else 4)
        self.damping = nn.Parameter(torch.zeros(channels))
        # |w_ii| is then about 1, which solvers that know nothing of the field can solve.
        nn.init.uniform_(self.conv.weight, -2 / self.conv.weight[0].numel(), 2 / self.conv.weight[0].numel())

    def _entries(self) -> tuple[Tensor, Tensor]:
        """The weights off the diagonal, and (channels,) the moduli of those on it."""
        weight, channel = self.conv.weight, torch.arange(len(self.conv.weight), device=self.conv.weight.device)
        diagonal = torch.zeros_like(weight)
        diagonal[channel, channel % weight.shape[1], 1, 1] = 1
        others = weight * (1 - diagonal)
        # The sum is rounded: it is enlarged by more than that, so that the bound holds for the numbers as they are.
        guard = 1 + 2 * others[0].numel() * torch.finfo(weight.dtype).eps
        return others, others.abs().sum((1, 2, 3)) * guard + self.damping.abs()

    def moduli(self) -> PerSample:
        """(channels,) |w_ii|: the largest h of an explicit Euler step that is proven is 1 over the largest of them."""
        return self._entries()[1]

    def kernel(self) -> Float[Tensor, "channels inputs 3 3"]:
        """Weights of W."""
        others, moduli = self._entries()
        channel = torch.arange(len(others), device=others.device)
        return others.index_put(
            (channel, channel % others.shape[1], torch.ones_like(channel), torch.ones_like(channel)), -moduli
        )

    def forward(self, t: Time, y: State) -> State:
        """dy/dt at (B, channels, H, W); t is not used."""
        return F.relu(F.conv2d(y, self.kernel(), self.conv.bias, padding=1, groups=self.conv.groups))

    def mu_bound(self, y: State) -> PerSample:
        """(B,) bound of mu_2, the norm of W: nothing better is known of it in L2."""
        return operator_bound(self.kernel(), self.conv.groups).to(y).expand(len(y))

    def constants(self, p: float, shape: Shape | None = None) -> Constants:
        """In L-infinity; nothing is proven in L2."""
        check_norm(p)
        if p != math.inf:
            return Constants()
        kernel, moduli = self.kernel().detach().double(), self._entries()[1].detach().double()
        rows = kernel.abs().sum((1, 2, 3)).max().item() * (1 + 1e-12)
        bias = self.conv.bias
        assert bias is not None
        return Constants(
            mu=0.0,
            forward=(1 - 1e-12) / moduli.max().item() if moduli.any() else math.inf,
            lipschitz=rows,
            magnitude=rows,
            offset=bias.detach().abs().max().item(),
            operations=kernel[0].numel() + 3,
            reason="w_ii + sum_{j != i} |w_ij| <= 0 in every row, and ReLU multiplies rows with numbers in [0, 1]",
        )


def _norm(weight: Tensor, shape: Shape | None, groups: int = 1) -> float:
    return operator_bound(weight, groups, None if shape is None else shape[1:]).item()


def _modulus(weight: Tensor, groups: int = 1) -> float:
    """||K|| with every weight replaced by its modulus: the symbol of such a convolution is largest at frequency 0."""
    parts = weight.detach().double().abs().sum((2, 3)).chunk(groups)
    return max(torch.linalg.matrix_norm(part, 2).item() for part in parts) * (1 + 1e-10)


def _bias_norm(bias: Tensor | None, shape: Shape | None) -> float:
    """||b|| as a state; unknown where the number of pixels is."""
    if shape is None:
        return math.inf
    return 0.0 if bias is None else bias.detach().double().norm().item() * math.sqrt(shape[1] * shape[2]) * (1 + 1e-12)
