"""How perturbations grow along a network: measured, as the linearised steps say, and as R(h J) of each block says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odenets.nets.guard import guarded
from odenets.nets.stage import ODEStage
from odenets.types import Field, Time
from stability.errors import InputError
from stability.linear.jacobian import check_mode, check_state, linearised, load_decompositions, repeated
from stability.network.places import check_net, trajectories
from stability.random import direction
from stability.scaling import scaled_norm
from stability.types import Flags, Map, PerSample, Product, Rows, State


@dataclass(frozen=True, eq=False)
class Growth:
    """||delta_n|| / ||delta_0|| at every place of a network, for each sample; tensors on the host.

    places: P pairs (stage, block): (n, -1) where stage n begins, (n, b) behind its block b; (-1, -1) is the input and
        (stages, -1) the output. Between the end of a stage and the next beginning the shape may change, and norms of
        other spaces are compared.
    measured: (P, B), of the network as it is.
    linear: (P, B), of the tangent of the discrete network at x.
    predicted: (P, B), from the measured perturbation at the beginning of a stage on by R(h J), J the Jacobian of the
        field at the start of each step. NaN behind the stages, at the input, and for schemes without a one-step R.
    """

    places: tuple[tuple[int, int], ...]
    measured: Float[Tensor, "places batch"]
    linear: Float[Tensor, "places batch"]
    predicted: Float[Tensor, "places batch"]


def growth(net: nn.Module, x: State, delta: State) -> Growth:
    """Follow a perturbation through a network.

    Args:
        net: Any module with `ODEStage`s, or a stage; implicit steps are as accurate as their tolerance, so tighten it
            (`odenets.tightened`) where the scheme shall be measured and not the solver.
        x: Images (B, ...), in float64 where `delta` is small; for a stage, states.
        delta: Perturbations (B, ...), for each sample one: random, or adversarial - x.

    Returns:
        A `Growth`.

    Raises:
        ValueError: See `places`; delta of another shape, or zero for a sample; a network that mixes the samples of a batch.
    """
    check_net(net, x)
    if delta.shape != x.shape:
        raise InputError(f"delta must have the shape of x, {tuple(x.shape)}, got {tuple(delta.shape)}")
    size = scaled_norm(delta)
    if not bool((size > 0).all() and size.isfinite().all()):
        raise InputError(f"delta must be finite and not zero for any sample; its norms are {size.tolist()}")

    def along(x: State) -> Rows:
        """All that becomes of a sample on its way, in one row."""
        found, output = trajectories(net, x)
        parts = [x, *(states.movedim(0, 1) for _, states in found), output]
        stages[:], shapes[:] = [stage for stage, _ in found], [part.shape[1:] for part in parts]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def parted(rows: Rows) -> list[Tensor]:
        parts = rows.split([shape.numel() for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]

    stages: list[ODEStage] = []
    shapes: list[torch.Size] = []
    at = linearised(along, x, square=False)
    base, tangents = parted(at.value), parted(at.forward(delta.flatten(1)))
    with torch.no_grad():
        moved = parted(along(x + delta))
        labels = [(-1, -1)]
        measured, linear = [size], [size]
        predicted = [torch.full_like(size, torch.nan)]
        for index, (stage, start, end, tangent) in enumerate(zip(stages, base[1:], moved[1:], tangents[1:])):
            every = slice(None, None, stage.substeps)
            labels += [(index, block) for block in range(-1, len(stage.fields))]
            measured += [scaled_norm(difference) for difference in (end - start)[:, every].unbind(1)]
            linear += [scaled_norm(v) for v in tangent[:, every].unbind(1)]
            predicted += _predicted(stage, start, (end - start)[:, 0])
        labels.append((len(stages), -1))
        measured.append(scaled_norm(moved[-1] - base[-1]))
        linear.append(scaled_norm(tangents[-1]))
        predicted.append(predicted[0])
    return Growth(tuple(labels), *(torch.stack(curve).div(size).cpu() for curve in (measured, linear, predicted)))


def _predicted(stage: ODEStage, states: Tensor, v: State) -> list[PerSample]:
    """Norms (B,) of v at the beginning of a stage and behind each block, each step multiplying it by R(h J).

    states: (B, steps + 1, ...).
    """
    sizes = [scaled_norm(v)]
    if not (stage.scheme.one_step and stage.scheme.has_R):
        return [torch.full_like(sizes[0], torch.nan)] * (1 + len(stage.fields))
    size, h = sizes[0], stage.step_size
    for n, field in enumerate(stage.fields):
        for k in range(stage.substeps):
            y = states[:, n * stage.substeps + k]
            # Scaled to the state: a solver's floor for rounding is relative to it.
            scale = scaled_norm(y).clamp_min(1.0) / scaled_norm(v).clamp_min(torch.finfo(y.dtype).tiny)
            scale = scale.view(-1, *[1] * (y.dim() - 1))
            pair = torch.stack([v * scale, y], 1)
            v = stage.scheme.step(_linearised(field), n * stage.interval + k * h, pair, h)[:, 0] / scale
        size = scaled_norm(v)
        sizes.append(size)
    return sizes


def _linearised(field: Field) -> Field:
    """The linear field v -> J(y) v on pairs (v, y): y stays, so that a step multiplies v by R(h J(y)).

    The state travels with its sample, for a solver evaluates parts of a batch. In forward mode, not by `linearised`: a solver
    differentiates this field again, which a product along a graph that is kept does not allow.
    """
    evaluate = guarded(field)
    load_decompositions()

    def f(t: Time, pair: State) -> State:
        v, y = pair.unbind(1)
        image = torch.func.jvp(lambda y: evaluate(t, y), (y.detach(),), (v,))[1]
        return torch.stack([image, torch.zeros_like(v)], 1)

    linear: Any = f
    if hasattr(field, "parts"):
        linear.parts = tuple(_linearised(part) for part in field.parts)
    return linear


@dataclass(frozen=True, eq=False)
class Exponents:
    """Finite-time Lyapunov exponents, largest first; on the host.

    values: (B, k). converged: (B,) bool, the last round moved none by more than the tolerance. rounds: of the iteration.
    """

    values: Float[Tensor, "batch k"]
    converged: Flags
    rounds: int


def lyapunov_exponents(
    maps: Map | Sequence[Map], y: State, k: int = 4, *, time: float = 1.0, tol: float = 1e-6, max_rounds: int = 100
) -> Exponents:
    """log(sigma_i)/time of the k leading singular values sigma_i of the Jacobian of maps applied one after the other.

    Directions are pushed through one map after the other and made orthonormal by QR behind each, so that nothing overflows
    and no direction hides behind a faster one; then pulled back in the same way, which turns them to the singular vectors,
    and so on until the exponents stand. A few directions more than wanted are carried, since convergence is by the gap
    behind the last.

    Args:
        maps: A function (B, ...) -> (B, ...), or a sequence of them: the steps of a stage, a stage, a whole network.
        y: States (B, ...) where the first map begins.
        k: Number of exponents, at most the entries of a sample before and behind the maps.
        time: Over which the maps go.
        tol: Change of k exponents times `time` in a round.
        max_rounds: Cap.

    Returns:
        `Exponents`.

    Raises:
        ValueError: k or time out of range, a state that is not finite, a map that mixes the samples of a batch, changes the
            dtype or hides its derivative from autograd.

    Source: Benettin, Galgani, Giorgilli, Strelcyn (1980), Meccanica 15, for the QR; Golub & Van Loan, Matrix
    Computations, orthogonal iteration on A^T A.
    """
    maps = [maps] if callable(maps) else list(maps)
    states = _states(maps, y)
    smallest = min(state[0].numel() for state in states)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= smallest:
        raise InputError(f"k must be a whole number from 1 to {smallest}, the fewest entries of a sample on the way, got {k!r}")
    if not 0 < time < float("inf"):
        raise InputError(f"time must be positive and finite, got {time}")
    p = min(smallest, k + 3)
    steps = [linearised(f, repeated(state, p), tol / 100, square=False) for f, state in zip(maps, states)]
    Q = torch.stack([direction(y[0].numel(), seed) for seed in range(p)], 1).to(y).expand(len(y), -1, -1)
    Q = torch.linalg.qr(Q)[0]
    tiny, before = torch.finfo(y.dtype).tiny, None
    for rounds in range(1, max_rounds + 1):
        B, log_scale = torch.eye(p).to(y).expand(len(y), p, p), torch.zeros(len(y)).to(y)
        for step in steps:
            Q, R = torch.linalg.qr(_columns(step.forward, Q))
            B = R @ B
            size = scaled_norm(B).clamp_min(tiny)
            B, log_scale = B / size[:, None, None], log_scale + size.log()
        U, S, _ = torch.linalg.svd(B)
        values = S[:, :k].clamp_min(tiny).log() + log_scale[:, None]
        change = torch.full((len(y),), torch.inf).to(y) if before is None else (values - before).abs().amax(1)
        if bool((change <= tol).all()) or rounds == max_rounds:
            break
        before, Q = values, Q @ U
        for step in reversed(steps):
            Q = torch.linalg.qr(_columns(step.reverse, Q))[0]
    # In a space that is full there is nothing to wait for.
    return Exponents((values / time).cpu(), (change <= tol).cpu() | (p == y[0].numel()), rounds)


def _states(maps: list[Map], y: State) -> list[State]:
    """Where each map begins, and where the last one ends."""
    check_state(y)
    states = [y]
    with torch.no_grad():
        for f in maps:
            check_mode(f)
            states.append(f(states[-1].clone()))  # it may write into its argument
    return states


def _columns(product: Product, Q: Float[Tensor, "batch n p"]) -> Float[Tensor, "batch m p"]:
    """(B, m, p) products with the columns of Q (B, n, p)."""
    return product(Q.mT.reshape(-1, Q.shape[1])).reshape(len(Q), Q.shape[2], -1).mT
