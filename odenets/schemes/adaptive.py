"""Adaptive step sizes through torchdiffeq. The steps taken depend on the input, so attack gradients may be masked."""
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torchdiffeq import odeint
from torchdiffeq._impl import misc, rk_common

from odenets.errors import InputError
from odenets.schemes.scheme import Scheme
from odenets.solve.transforms import dual_level, transforming

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass(frozen=True, eq=False)
class Adaptive(Scheme):
    """An embedded pair of torchdiffeq with error control, differentiated through its steps.

    A run chooses its steps from the data: it has no R(z), and its output changes by about the tolerance where a step is
    accepted or rejected. Attacks on it need a gradient-free check: SONet's PGD-20 accuracy of 62 % fell to 24 % under
    PGD-1000.

    Args:
        method: One of dopri5, dopri8, bosh3, fehlberg2, adaptive_heun.
        rtol, atol: Tolerances of the local error, > 0, per sample.
        coupled: Solve the batch as one system: faster, but each sample's output then depends on its neighbours.
    """

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    coupled: bool = False

    name = "adaptive"
    order = None
    implicit = False
    iterates = True
    stages = evaluations = None
    source = "Chen (2018), torchdiffeq; Dormand & Prince (1980)"

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"adaptive: unknown method {self.method!r}; choose from {', '.join(METHODS)}")
        for key in ("rtol", "atol"):
            if not 0 < getattr(self, key) < float("inf"):
                raise InputError(f"adaptive: {key} must be positive and finite, got {getattr(self, key)}")

    def step(self, f, t, y, h, gradient="exact", record=None):
        """Integrate from t to t + h; see `Scheme.step`. The sizes of the accepted steps go to `record`."""
        if not self.coupled and len(y) != 1:
            return torch.cat([self._integrate(f, t, sample, h, record, index) for index, sample in enumerate(y.split(1))])
        return self._integrate(f, t, y, h, record, None if self.coupled else 0)

    def _integrate(self, f, t, y, h, record, sample):
        real = torch.empty(0, dtype=y.dtype).real.dtype
        times = torch.stack([torch.as_tensor(v, dtype=real, device=y.device) for v in (t, t + h)])
        observed = _Observed(f)
        with _composable():
            end = odeint(observed, y, times, method=self.method, rtol=self.rtol, atol=self.atol)[-1]
        if record is not None:
            record.append(AcceptedSteps(sample, tuple(float(size) for size in observed.sizes)))
        return end

    def amplification(self, z):
        """Undefined: the steps depend on the data."""
        raise InputError("adaptive has no stability function R(z): its step sizes depend on the data")


class AcceptedSteps(NamedTuple):
    """The step sizes of one run; the last one may reach beyond its end. sample: its index, None where the batch is coupled."""

    sample: int | None
    sizes: tuple


class _Observed:
    """f, with torchdiffeq's hook for accepted steps."""

    def __init__(self, f):
        self.f, self.sizes = f, []

    def __call__(self, t, y):
        return self.f(t, y)

    def callback_accept_step(self, t, y, size):
        self.sizes.append(size.detach())


class _Assign:
    """Writes a slope into the array of slopes, out of place."""

    @staticmethod
    def apply(slopes, value, index):
        return torch.select_scatter(slopes, value, -1, index[-1])


class _Perturbed:
    """Keeps the perturbed time; nobody differentiates in t."""

    @staticmethod
    def apply(time, perturbed):
        return perturbed


def _constant_step_size(*arguments):
    """The next step size, a constant: torchdiffeq's no_grad says so to reverse mode only."""
    return misc._optimal_step_size(*arguments).detach()


@contextmanager
def _composable():
    """Under torch.func and dual numbers, replace those parts of torchdiffeq that have no rules for them.

    The replacements compute the same values by plain operations.
    """
    replaced = ((rk_common, "_UncheckedAssign", _Assign), (misc, "_StitchGradient", _Perturbed),
                (rk_common, "_optimal_step_size", _constant_step_size))
    if not (transforming() or dual_level()):
        replaced = ()
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, function in replaced:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), function in zip(replaced, before):
            setattr(module, name, function)
