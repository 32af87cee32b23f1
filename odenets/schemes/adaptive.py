"""Adaptive step sizes, of each sample its own. The steps taken depend on the input, so attack gradients may be masked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from odenets.errors import InputError
from odenets.schemes.embedded import PAIRS, EmbeddedPair
from odenets.schemes.scheme import Scheme, combine
from odenets.solve.log import Record
from odenets.solve.precision import solving
from odenets.solve.rows import as_rows
from odenets.solve.transforms import dual_level, mapping, transforming
from odenets.types import Field, PerSample, State, Time

THROUGH_TORCHDIFFEQ = ("dopri8",)
METHODS = (*PAIRS, *THROUGH_TORCHDIFFEQ)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0  # a step aims at this share of the tolerance, and changes by no more than these factors
MAX_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Adaptive(Scheme):
    """An embedded pair with error control, differentiated through its steps, whose sizes count as constants.

    A run chooses its steps from the data: it has no R(z), and its output changes by about the tolerance where a step is
    accepted or rejected. Attacks on it need a gradient-free check: SONet's PGD-20 accuracy of 62 % fell to 24 % under
    PGD-1000.

    Samples walk at their own pace, so that a field is asked at as many times as there are samples: one that says
    `autonomous = True` is asked for all of them at once, any other through torch.func.vmap, a time and a state each.

    Args:
        method: One of dopri5, bosh3, fehlberg2, adaptive_heun; or dopri8, through torchdiffeq, one sample after the other.
        rtol, atol: Tolerances of the local error, > 0, per sample.
        coupled: Solve the batch as one system: each sample's output then depends on its neighbours.

    Source: Hairer, Norsett, Wanner I (1993), section II.4, for the first step and the control of its size.
    """

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    coupled: bool = False

    name = "adaptive"
    order = None
    implicit = False
    iterates = True
    has_R = False
    adaptive = True
    cost = 50
    looks_at_values = True
    stages = evaluations = None
    source = "Dormand & Prince (1980); Hairer, Norsett, Wanner I (1993), section II.4"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"adaptive: unknown method {self.method!r}; choose from {', '.join(METHODS)}")
        for key in ("rtol", "atol"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InputError(f"adaptive: {key} must be positive and finite, got {getattr(self, key)}")

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """Integrate from t to t + h; see `Scheme.step`. The sizes of the accepted steps go to `record`."""
        if mapping():
            raise InputError(
                "adaptive chooses its steps from the data, which torch.func.vmap hides: call the stage on a batch "
                "(B, ...), which it integrates sample by sample, or use a scheme with fixed steps"
            )
        with solving(y, self):
            if not len(y):
                return y + h * f(t, y)
            if self.method in THROUGH_TORCHDIFFEQ:
                end, accepted = self._by_torchdiffeq(f, t, y, h)
            else:
                end, accepted = self._integrate(PAIRS[self.method], f, t, y, h)
        if record is not None:
            for entry in accepted:
                record.append(entry)
        return end

    def _integrate(self, pair: EmbeddedPair, f: Field, t: Time, y: State, h: Time) -> tuple[State, list["AcceptedSteps"]]:
        """The state at t + h, and the `AcceptedSteps`.

        A walk is what shares a step size: a sample, or with `coupled` the batch. Those that have arrived are not evaluated.
        """
        y = y[None] if self.coupled else y
        slope = _asked(f, self.coupled)
        real = torch.float64 if y.dtype in (torch.float64, torch.complex128) else torch.float32
        times = torch.full((len(y),), float(t), dtype=real, device=y.device)
        end, rows = float(t) + float(h), torch.arange(len(y), device=y.device)
        sizes: list[list[float]] = [[] for _ in range(len(y))]
        state, first = y, slope(times, y)
        steps = self._first_step(pair, slope, times, state, first, float(h))
        for _ in range(MAX_STEPS):
            last = times + steps >= end - 1e-6 * abs(float(h))  # no sliver of a step is left over
            tried = torch.where(last, end - times, steps)
            width = _column(tried, state)
            slopes = [first]
            for row, node in zip(pair.tableau.A[1:].tolist(), pair.tableau.c[1:].tolist()):
                slopes.append(slope(times + node * tried, combine(state, width, row, slopes)))
            new = combine(state, width, pair.tableau.b.tolist(), slopes)
            if pair.reuses_slope:
                slopes.append(slope(times + tried, new))
            ratio = self._ratio(combine(None, width, pair.error, slopes), state, new)
            accepted = ratio <= 1  # NaN is rejected
            for index, taken in zip(rows[accepted].tolist(), tried[accepted].tolist()):
                sizes[index].append(taken)
            factor = (SAFETY * ratio.clamp_min(1e-12) ** (-1 / pair.error_order)).clamp(SHRINK, GROW).nan_to_num(SHRINK)
            steps = tried * torch.where(accepted, factor.clamp_min(1.0), factor.clamp_max(SAFETY))
            times = torch.where(accepted, times + tried, times)
            state = torch.where(_column(accepted, state), new, state)
            if pair.reuses_slope:
                first = torch.where(_column(accepted, state), slopes[-1], first)
            going = ~(accepted & last)
            if not bool(going.all()):
                y = y.index_copy(0, rows[~going], state[~going])
                rows, times, steps, state, first = (part[going] for part in (rows, times, steps, state, first))
            if not len(rows):
                y = y[0] if self.coupled else y
                return y, [AcceptedSteps(None if self.coupled else n, tuple(taken)) for n, taken in enumerate(sizes)]
            if bool((steps <= 4 * torch.finfo(real).eps * times.abs().clamp_min(abs(float(h)))).any()):
                raise InputError(
                    f"adaptive: the step size fell below rounding at t = {float(times[0]):.3g}, in {len(rows)} of "
                    f"{len(y)} walks: the field is not finite there, or too stiff for an explicit pair; choose an "
                    "implicit scheme"
                )
            if not pair.reuses_slope:
                first = slope(times, state)
        raise InputError(
            f"adaptive: {MAX_STEPS} steps do not reach the end with rtol={self.rtol:g}, atol={self.atol:g}; choose "
            "larger tolerances, or an implicit scheme"
        )

    def _ratio(self, error: State, before: State, after: State) -> PerSample:
        """(rows,) root mean square of the local error over its tolerance; a step is accepted up to 1."""
        error, before, after = (as_rows(part.detach()).abs() for part in (error, before, after))
        return (error / (self.atol + self.rtol * torch.maximum(before, after))).square().mean(1).sqrt()

    def _first_step(
        self, pair: EmbeddedPair, slope: Callable[[PerSample, State], State], times: PerSample, y: State, first: State, h: float
    ) -> PerSample:
        """(rows,) sizes that the first derivatives at the start suggest. Source: the section named above, algorithm (4.14)."""
        y, first = y.detach(), first.detach()
        scale = self.atol + self.rtol * y.abs()
        size, speed = (_rms(part / scale) for part in (y, first))
        small = (size < 1e-5) | (speed < 1e-5)
        guess = torch.where(small, 1e-6 * h, 0.01 * size / speed).to(times).clamp_max(h)
        ahead = slope(times + guess, y + _column(guess, y) * first).detach()
        curvature = _rms((ahead - first) / scale) / guess
        largest = torch.maximum(speed, curvature).to(times)
        second = torch.where(largest <= 1e-15, (1e-3 * guess).clamp_min(1e-6 * h), (0.01 / largest) ** (1 / pair.error_order))
        return torch.minimum(100 * guess, second).nan_to_num(1e-3 * h).clamp(1e-6 * h, h)

    def _by_torchdiffeq(self, f: Field, t: Time, y: State, h: Time) -> tuple[State, list["AcceptedSteps"]]:
        from torchdiffeq import odeint

        if transforming() or dual_level():
            raise InputError(
                f"adaptive(method={self.method}) runs in torchdiffeq, whose steps have no rules for torch.func or "
                f"forward-mode derivatives; choose from {', '.join(PAIRS)}"
            )
        real = torch.empty(0, dtype=y.dtype).real.dtype
        times = torch.stack([torch.as_tensor(v, dtype=real, device=y.device) for v in (t, t + h)])
        ends, accepted = [], []
        for n, part in enumerate([y] if self.coupled else y.split(1)):
            observed = _Observed(f)
            ends.append(odeint(observed, part, times, method=self.method, rtol=self.rtol, atol=self.atol)[-1])
            accepted.append(AcceptedSteps(None if self.coupled else n, tuple(map(float, observed.sizes))))
        return torch.cat(ends), accepted

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """Undefined: the steps depend on the data."""
        raise InputError("adaptive has no stability function R(z): its step sizes depend on the data")


class AcceptedSteps(NamedTuple):
    """The step sizes of one walk. sample: its index, None where the batch is coupled."""

    sample: int | None
    sizes: tuple[float, ...]


def _asked(f: Field, coupled: bool) -> Callable[[PerSample, State], State]:
    """(times, states) -> slopes, a row for each walk: how a field that takes one time is asked at many."""
    if coupled:
        return lambda times, states: f(times[0], states[0])[None]

    def each(time: Tensor, state: Tensor) -> Tensor:
        return f(time, state[None])[0]

    def slope(times: PerSample, states: State) -> State:
        if getattr(f, "autonomous", False) or len(times) == 1:
            return f(times[0], states)
        try:
            return torch.func.vmap(each)(times, states)
        except (RuntimeError, ValueError) as refusal:
            raise InputError(
                "adaptive asks the field at another time for each sample, through torch.func.vmap, which refuses: "
                f"{str(refusal).splitlines()[0]} Say `autonomous = True` where it does not depend on t, or use "
                "adaptive(coupled=true)"
            ) from refusal

    return slope


def _column(values: Tensor, like: State) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _rms(v: State) -> PerSample:
    return as_rows(v).abs().square().mean(1).sqrt()


class _Observed:
    """f, with torchdiffeq's hook for accepted steps."""

    def __init__(self, f: Field) -> None:
        self.f = f
        self.sizes: list[Tensor] = []

    def __call__(self, t: Time, y: State) -> State:
        return self.f(t, y)

    def callback_accept_step(self, t: Tensor, y: Tensor, size: Tensor) -> None:
        self.sizes.append(size.detach())
