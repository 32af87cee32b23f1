"""Certified radii: a margin over the proven Lipschitz constant, less all that the computation may be off.

Let F be the exact network and g what is computed, with equations solved to residuals r_l(x) and rounding errors below e_l. Then
||g - F|| <= sum_l c_l r_l(x) + e_l =: E(x) at every image x in front of the head, and at most sum_l c_l tau + e_l wherever no
residual exceeds tau. A network that abstains where one does gives no image x' with ||x' - x|| < R(x) the class j, for

    R(x) = min_j [ (g_y - g_j - 4 e_head)/||w_y - w_j||_* - E(x) - sum_l (c_l tau + e_l) ] / Lipschitz constant of F.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stability.attacks.threats import L2, Linf
from stability.certificates.links import Head, links
from stability.errors import InputError
from stability.types import Flags, Images, Labels, PerSample

PIECE = 256  # images computed together
ABSTAINED = -1


@dataclass(frozen=True, eq=False)
class Budget:
    """Where a radius goes, in the units of the features in front of the head.

    margin: (B,) the smallest margin over the distance of the two rows. residuals: {stage: (B,)} what the residuals measured at
    the image take, those of all its equations together. deployed: {stage: what tau takes at an attacked image}. rounding:
    {layer: what rounding takes, at the image and at an attacked one}. factor: the Lipschitz constant that divides what is left.
    """

    margin: PerSample
    residuals: dict[str, PerSample]
    deployed: dict[str, float]
    rounding: dict[str, float]
    factor: float


@dataclass(frozen=True, eq=False)
class Certificate:
    """What `certify` proves of some images.

    radius: (B,) no image nearer than this, in [0, 1] everywhere, is given another class by `predict`; 0 where nothing is
        proven, where the prediction is not y, and where it is abstained from.
    predicted: (B,) the class, -1 where abstained.
    abstained: (B,) an equation has a residual above tau.
    budget: what the radius is made of.
    tau: the absolute tolerance that every prediction is held to. p: 2 or inf, the norm of the radius.
    """

    radius: PerSample
    predicted: Labels
    abstained: Flags
    budget: Budget
    tau: float
    p: float
    _prover: "_Prover" = field(repr=False)

    def predict(self, x: Images) -> Labels:
        """The certified network's classes of images in [0, 1], (B,); -1 where it abstains. What the radii are about."""
        logits, residuals, _ = self._prover.walk(x)
        return torch.where(self._prover.solved(residuals), logits.argmax(1), ABSTAINED)


def certify(
    net: nn.Module,
    x: Images,
    y: Labels | None = None,
    norm: type = L2,
    tau: float = 1e-7,
    dtype: torch.dtype = torch.float64,
) -> Certificate:
    """Radii that no perturbation can enter, for a chain of layers of which all is proven.

    Args:
        net: An nn.Sequential of the layers of `odenets.nets.certifiable` and stages with fields that have proofs; see
            `odenets.certifiable_small`. It is copied, in float64: later changes of it do not touch the certificate.
        x: Images (B, C, H, W) in [0, 1].
        y: (B,) their classes: radii are 0 where the prediction is another one.
        norm: `stability.L2` or `stability.Linf`.
        tau: Absolute tolerance of every equation, at these images and at those that an attacker may show.
        dtype: float64; nothing less holds a residual.

    Returns:
        A `Certificate`.

    Raises:
        ValueError: A layer or a step of which nothing is proven, by its name; images out of [0, 1] or not finite; tau not
            positive or below what rounding leaves, which is said; another norm or dtype.

    Source: Tsuzuku, Sato, Sugiyama (2018), Lipschitz-margin training, for the margin; the module's first lines for the rest.
    """
    if norm not in (L2, Linf):
        raise InputError(f"norm must be stability.L2 or stability.Linf, got {norm!r}")
    if dtype != torch.float64:
        raise InputError(
            f"dtype must be torch.float64, got {dtype}: a residual in less says nothing of what its rounding hides"
        )
    if not 0 < tau < math.inf:
        raise InputError(f"tau must be positive and finite, got {tau}")
    _check_images(x)
    if y is not None and (y.shape != x.shape[:1] or y.is_floating_point()):
        raise InputError(f"y must be one whole number for each of {len(x)} images, got shape {tuple(y.shape)}, {y.dtype}")
    prover = _Prover(net, tuple(x.shape[1:]), 2 if norm is L2 else math.inf, float(tau))
    logits, residuals, used = prover.walk(x)
    solved = prover.solved(residuals)
    head, classes = prover.head, torch.where(solved, logits.argmax(1), ABSTAINED)
    top = logits.argmax(1)
    gaps = logits.gather(1, top[:, None]) - logits - 4 * head.rounding
    margins = gaps / head.distances[top].clamp_min(torch.finfo(gaps.dtype).tiny)
    margin = margins.scatter(1, top[:, None], math.inf).min(1).values
    budget = Budget(margin, used, prover.deployed, {name: 2 * value for name, value in prover.rounding.items()}, prover.factor)
    spent = sum(used.values(), torch.zeros_like(margin)) + sum(budget.deployed.values()) + sum(budget.rounding.values())
    radius = ((margin - spent) / prover.factor * (1 - 1e-12)).clamp_min(0)
    proven = solved if y is None else solved & (top == y.to(top.device))
    return Certificate(torch.where(proven, radius, 0.0), classes, ~solved, budget, float(tau), prover.p, prover)


def _check_images(x: Images) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"x must be floating-point images (B, C, H, W), got shape {tuple(x.shape)}, {x.dtype}")
    if x.numel() and not (bool(x.isfinite().all()) and 0 <= x.min() and x.max() <= 1):
        raise InputError(f"images must lie in [0, 1]; these go from {x.min().item():g} to {x.max().item():g}")


class _Prover:
    """A copy of the network with the bounds of every link, for images of one shape, one norm, one tau."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], p: float, tau: float) -> None:
        links(net)  # refuses hooks and the like, which a copy may not have
        self.p, self.tau, self.shape = p, tau, shape
        if not all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values()):
            raise InputError("a weight of the network is not finite: nothing is proven of it")
        exact = copy.deepcopy(net).double().eval().requires_grad_(False)
        self.links, head_name, head = links(exact)
        norm = math.prod(shape) ** (1 / p)  # of the largest image in [0, 1]
        bounds, least, state = [], 0.0, torch.zeros(1, *shape, dtype=torch.float64, device=next(exact.parameters()).device)
        with torch.no_grad():
            for link in self.links:
                bound = link.bounds(tuple(state.shape[1:]), norm, p, tau)
                for move in link.moves:
                    least = max(least, move.least_tau(max(norm, bound.norm)))
                state = state if link.moves else link(state)
                bounds.append(bound)
                norm = bound.norm
            self.head = Head.of(head, norm, p)
        if state.shape[1:] != self.head.weight.shape[1:]:
            raise InputError(
                f"layer {head_name!r} takes {self.head.weight.shape[1]} features, but images of shape {shape} give "
                f"{tuple(state.shape[1:])}"
            )
        if tau < least:
            raise InputError(
                f"tau = {tau:g} is below what rounding in float64 leaves of a residual here: the least is {least:.2g}"
            )
        self.behind: list[float] = []  # the Lipschitz constant of all behind each link
        behind = 1.0
        for bound in reversed(bounds):
            self.behind.insert(0, behind)
            behind *= bound.factor
        self.factor = behind
        named = [(link.name, bound, rest) for link, bound, rest in zip(self.links, bounds, self.behind)]
        self.deployed = {name: rest * bound.deployed for name, bound, rest in named if bound.deployed}
        self.rounding = {name: rest * bound.rounding for name, bound, rest in named if bound.rounding}

    @torch.no_grad()
    def walk(self, x: Images) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(logits, (B, equations) residuals, {stage: (B,) what they take of the margin}), in float64, piece by piece."""
        _check_images(x)
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the certificate is for images of shape {self.shape}, got {tuple(x.shape[1:])}")
        # Transforms in place of sums (FFT, Winograd) would not be what the rounding errors are bounded for.
        with torch.backends.cudnn.flags(enabled=False, deterministic=None, benchmark=None, allow_tf32=None):
            pieces = [self._piece(part) for part in x.split(PIECE)]
        used = {name: torch.cat([piece[2][name] for piece in pieces]) for name in pieces[0][2]}
        return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces]), used

    def _piece(self, x: Images) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        y = x.to(self.head.weight)
        residuals, used = [torch.zeros(len(x), 1).to(y)], {}
        for link, behind in zip(self.links, self.behind):
            if not link.moves:
                y = link(y)
                continue
            error = torch.zeros(len(x)).to(y)
            for move in link.moves:
                y, residual = move(y, self.tau)
                error = error * move.factor + move.residual * residual
                residuals.append(residual[:, None])
            used[link.name] = behind * error
        return self.head(y), torch.cat(residuals, 1), used

    def solved(self, residuals: Tensor) -> Flags:
        """(B,) whether no residual is above tau; NaN is."""
        return (residuals <= self.tau).all(1)
