"""Networks that are non-expansive from pixel to logit: isometries around stages of fields with proofs.

Nothing here couples images, and nothing divides by what it sees: GroupNorm, LayerNorm and a hidden 1/std have no place.
"""

import math
from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from odenets.errors import InputError
from odenets.nets.fields import get_field
from odenets.nets.layers import basic_layers
from odenets.nets.monotone import GradientFlow, InfMonotone, Monotone, Shape, check_norm
from odenets.nets.stage import ODEStage, stages
from odenets.schemes import Scheme, Tableau, get_scheme
from odenets.types import State

Images = Float[Tensor, "batch channels height width"]
Others = Float[Tensor, "batch outputs rows columns"]  # after a layer that changes their sizes


class Centre(nn.Module):
    """y - value: an isometry."""

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.value = float(value)

    def forward(self, y: State) -> State:
        """(B, ...) -> (B, ...)."""
        return y - self.value


class PadChannels(nn.Module):
    """Channels of zeros behind those that come: an isometry.

    Args:
        channels: How many there are afterwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, y: Images) -> Others:
        """(B, C, H, W) -> (B, channels, H, W), C at most channels."""
        if y.shape[1] > self.channels:
            raise InputError(f"PadChannels pads to {self.channels} channels, but {y.shape[1]} came: take more")
        return F.pad(y, (0, 0, 0, 0, 0, self.channels - y.shape[1]))


class MaxMin(nn.Module):
    """The larger and the smaller one of each pair of channels, c and c + C/2: no distance grows, and gradients keep their norm.

    Source: Anil, Lucas, Grosse (2019), Sorting out Lipschitz function approximation, ICML.
    """

    def forward(self, y: State) -> State:
        """(B, C, ...) -> (B, C, ...), C even."""
        if y.shape[1] % 2:
            raise InputError(f"MaxMin takes pairs of channels, and {y.shape[1]} came: take an even number")
        one, other = y.chunk(2, 1)
        return torch.cat([torch.maximum(one, other), torch.minimum(one, other)], 1)


class ScaledPool(nn.Module):
    """size x size average pooling, multiplied by size: of norm 1 in L2, where the plain one has 1/size.

    Args:
        size: Pixels along each side of a window; the windows do not overlap.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, y: Images) -> Others:
        """(B, C, H, W) -> (B, C, H / size, W / size)."""
        return self.size * F.avg_pool2d(y, self.size)


class CayleyConv(nn.Module):
    """A 1x1 convolution by a matrix with orthonormal rows or columns: an isometry where outputs >= inputs, else a projection.

    With U square and V the rest of the free weights, A = U - U^T + V^T V has positive semi-definite symmetric part, and
    Q = [(I - A)(I + A)^-1; -2 V (I + A)^-1] has Q^T Q = I.

    Args:
        inputs, outputs: Channels.

    Source: Trockman & Kolter (2021), Orthogonalizing convolutional layers with the Cayley transform, appendix on non-square.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.randn(max(inputs, outputs), min(inputs, outputs)) / math.sqrt(max(inputs, outputs)))
        self.wide = outputs < inputs

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """The matrix Q, or its transpose."""
        n = self.free.shape[1]
        U, V = self.free[:n], self.free[n:]
        identity = torch.eye(n, dtype=U.dtype, device=U.device)
        A = U - U.mT + V.mT @ V
        Q = torch.linalg.solve(identity + A, torch.cat([identity - A, -2 * V]), left=False)
        return Q.mT if self.wide else Q

    def forward(self, y: Images) -> Others:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return F.conv2d(y, self.matrix()[:, :, None, None])


class UnitRows(nn.Module):
    """A linear layer whose rows have norm 1; how far two of them lie apart is between 0 and 2, and not sqrt 2.

    Args:
        features, classes: Sizes.
        p: The norm of the features, 2 or inf; rows have norm 1 in the dual one.
    """

    def __init__(self, features: int, classes: int, p: float = 2) -> None:
        super().__init__()
        check_norm(p)
        self.p = p
        self.free = nn.Parameter(torch.randn(classes, features) / math.sqrt(features))
        self.bias = nn.Parameter(torch.zeros(classes))

    @property
    def weight(self) -> Float[Tensor, "classes features"]:
        """The rows."""
        return F.normalize(self.free, 2 if self.p == 2 else 1, dim=1)

    def forward(self, y: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return F.linear(y, self.weight, self.bias)


def certifiable_small(
    num_classes: int = 10,
    in_channels: int = 1,
    size: int = 28,
    scheme: str | Scheme | Tableau = "splitting",
    field: str = "monotone",
    width: int = 16,
    depths: tuple[int, ...] = (2, 2),
    substeps: int = 1,
    p: float = 2,
    maxmin: bool = False,
) -> nn.Sequential:
    """A network that `stability.certify` proves: pixel-unshuffle, stages of fields with proofs, scaled pooling, unit rows.

    Explicit steps, and those of a splitting, are brought to their limit; see `at_limit`.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        size: Their height and width, a multiple of 4 (of 8 for two stages).
        scheme: Spec or `Scheme`, for all stages.
        field: "monotone", "gradient_flow", "skew" or "inf_monotone".
        width: Channels of the first stage, at least in_channels times 4; of the next ones twice as many each.
        depths: Fields of each stage. Between two stages the image is unshuffled, and a `CayleyConv` keeps half of its channels.
        substeps: Steps for each field.
        p: The norm of the certificates, 2 or inf. In L-infinity pooling multiplies distances and the rows of the head count by
            their L1 norm: there is no pooling then, and rows have norm 1 in L1.
        maxmin: A `MaxMin` behind each field, which then is a stage of its own: skew fields are linear, and need one.
    """
    if size % 2 ** len(depths) or size < 2 ** len(depths):
        raise InputError(f"size must be a multiple of {2 ** len(depths)} for {len(depths)} stages, got {size}")
    if width < 4 * in_channels:
        raise InputError(f"width must be at least 4 * in_channels = {4 * in_channels}, got {width}")
    build, pixels, channels = get_field(field).build, size // 2, width
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["centre"], layers["unshuffle"], layers["pad"] = Centre(), nn.PixelUnshuffle(2), PadChannels(width)
    for n, depth in enumerate(depths):
        if n:
            layers[f"unshuffle{n}"], layers[f"mix{n}"] = nn.PixelUnshuffle(2), CayleyConv(4 * channels, 2 * channels)
            pixels, channels = pixels // 2, 2 * channels
        for part in [f"{n}_{k}" for k in range(depth)] if maxmin else [f"{n}"]:
            fields = [build(basic_layers, channels) for _ in range(1 if maxmin else depth)]
            layers[f"stage{part}"] = at_limit(ODEStage(fields, scheme, substeps=substeps), (channels, pixels, pixels))
            if maxmin:
                layers[f"maxmin{part}"] = MaxMin()
    pool = next(k for k in (3, 2, 1) if pixels % k == 0 and pixels > k) if pixels > 1 and p == 2 else 1
    layers["pool"], layers["flatten"] = ScaledPool(pool), nn.Flatten()
    layers["head"] = UnitRows(channels * (pixels // pool) ** 2, num_classes, p)
    return nn.Sequential(layers)


def certifiable_cifar10(
    num_classes: int = 10,
    in_channels: int = 3,
    size: int = 32,
    scheme: str | Scheme | Tableau = "splitting",
    field: str = "monotone",
    width: int = 48,
    depths: tuple[int, ...] = (4, 4, 3),
    substeps: int = 1,
) -> nn.Sequential:
    """`certifiable_small` with three stages and 4.3 million parameters, for colour images of 32x32; arguments as there."""
    return certifiable_small(num_classes, in_channels, size, scheme, field, width, depths, substeps)


def certifiable_linf(
    num_classes: int = 10,
    in_channels: int = 1,
    size: int = 28,
    scheme: str | Scheme | Tableau = "implicit",
    field: str = "inf_monotone",
    width: int = 16,
    depth: int = 4,
    substeps: int = 1,
) -> nn.Sequential:
    """`certifiable_small` for L-infinity, with one stage: pooling and mixing would multiply distances there."""
    return certifiable_small(num_classes, in_channels, size, scheme, field, width, (depth,), substeps, math.inf)


@torch.no_grad()
def at_limit(stage: ODEStage, shape: Shape) -> ODEStage:
    """Scale weights so that the explicit steps of a stage are at the limit up to which they are proven; in place.

    On gradient flows ||K||^2 h = 2, the limit of explicit Euler and of Heun; on `inf_monotone` fields rows with |w_ii| h > 1
    are scaled to 1. Stages without an explicit step stay as they are: implicit ones need no such bound. In training, `hold`
    does the same with an estimate after each step of the optimiser, and this once at the end.

    Args:
        stage: Whose fields are `GradientFlow`, `Monotone` or `InfMonotone`; others are left alone.
        shape: Channels, height and width of its states.
    """
    stage.held_at = shape
    for flow in _limited(stage):
        # A rounding below the limit, so that weights rounded to float32 are not above it.
        _scale(flow, flow.constants(2, shape).forward / stage.step_size * (1 - 1e-5), stage.step_size)
    return stage


@torch.no_grad()
def hold(net: nn.Module, vectors: dict[str, Tensor], iterations: int = 3) -> None:
    """Bring every stage that `at_limit` has once brought there back to its limit, by a running estimate of ||K||: for training.

    Above the limit K goes to the nearest kernel at the limit, to first order: along the gradient of ||K||, that of the largest
    singular value alone. Were K multiplied instead, the filters that take no part in it would shrink at each step, and those
    whose ReLU rests would vanish: in five epochs on MNIST 97 to 99 % of the weights did, in three kernels of four. Below the
    limit K is multiplied. An estimate from below: what is certified afterwards has to be brought to its limit by `at_limit`
    (see `prove_limits`).

    Args:
        net: With `ODEStage`s.
        vectors: Where the power iterations stand, {name: (1, channels, height, width)}; {} at first, changed in place.
        iterations: Of the power iteration, at each call; thirty at the first one.
    """
    for name, stage in stages(net).items():
        for n, flow in enumerate(_limited(stage) if stage.held_at else ()):
            if isinstance(flow, InfMonotone):
                _scale(flow, 1.0, stage.step_size)
                continue
            assert stage.held_at is not None
            key, weight, limit = f"{name}.{n}", flow.conv.weight, math.sqrt(2 / stage.step_size)
            known = vectors.get(key)
            v = torch.ones(1, *stage.held_at).to(weight) if known is None else known
            v = v + 1e-3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)).to(weight) if known is None else v
            for _ in range(30 if known is None else iterations):
                at = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
                image = F.conv2d(at, weight, padding=1)
                v = F.conv_transpose2d(image, weight, padding=1)
            vectors[key], norm = v, image.norm()
            if norm > limit:
                slope = conv2d_weight(at, weight.shape, image / norm, padding=1)
                weight.sub_(slope * (norm - limit) / slope.square().sum())
            elif norm > 0:
                weight.mul_(limit / norm)


def prove_limits(net: nn.Module) -> None:
    """`at_limit` for every stage that was once brought there: after a training that `hold` accompanied."""
    for stage in stages(net).values():
        if stage.held_at:
            at_limit(stage, stage.held_at)


def _limited(stage: ODEStage) -> list[GradientFlow | InfMonotone]:
    """The fields, or parts of them, that a stage moves by explicit steps with a limit."""
    scheme = get_scheme(stage.scheme)
    fields = stage.fields if not scheme.implicit or scheme.moves else ()
    flows = [field.flow if isinstance(field, Monotone) else field for field in fields]
    return [flow for flow in flows if isinstance(flow, GradientFlow | InfMonotone)]


def _scale(flow: GradientFlow | InfMonotone, square: float, h: float) -> None:
    """Gradient flows: multiply K^T K by `square`; fields monotone in L-infinity: shrink the rows beyond 1/h."""
    if isinstance(flow, InfMonotone):
        rows = ((1 - 1e-5) / h / flow.moduli().clamp_min(torch.finfo(flow.damping.dtype).tiny)).clamp_max(1)
        flow.conv.weight.mul_(rows.view(-1, 1, 1, 1))
        flow.damping.mul_(rows)
    elif square < math.inf:
        flow.conv.weight.mul_(math.sqrt(square))
