"""What a batched solve says of each sample."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from odenets.errors import InputError
from odenets.solve.transforms import over_maps


class Solution(NamedTuple):
    """Outcome of a batched solve, per sample: the value on its device, what is said of it on the host, where that decided."""

    value: Any  # (B, ...), the best iterate; None once it is recorded
    converged: Tensor  # (B,) bool
    residual: Tensor  # (B,) norm of the residual, relative to the scale of the solve
    iterations: Tensor  # (B,) evaluations of the residual after the first
    evaluations: float  # evaluations that were computed, the mean over the samples
    backward: bool = False  # whether it belongs to a gradient
    start: int = 0  # index of the first sample, where a batch is solved in pieces
    scale: Any = None  # (B,) what a nonlinear solve's residual is relative to, on the device
    norm: Any = None  # (B,) norm of a nonlinear solve's residual itself

    def on(self, device: torch.device) -> "Solution":
        """What is said of the value on a device."""
        figures = (self.converged, self.residual, self.iterations)
        converged, residual, iterations = (figure.to(device) for figure in figures)
        norm = None if self.norm is None else self.norm.to(device)
        return self._replace(converged=converged, residual=residual, iterations=iterations, norm=norm)

    def over_maps(self) -> "Solution":
        """The same figures without wrappers of torch.func, the worst of each sample over what vmap maps over."""
        return self._replace(
            converged=over_maps(self.converged, torch.all),
            residual=over_maps(self.residual, torch.amax),
            iterations=over_maps(self.iterations, torch.amax),
            norm=None if self.norm is None else over_maps(self.norm, torch.amax),
        )


def check_settings(tol: float, max_iterations: int, on_failure: str, atol: float = 0.0) -> None:
    """ValueError for settings of a solve that are out of range."""
    if not 0 < tol < float("inf"):
        raise InputError(f"tol must be positive and finite, got {tol}")
    if not 0 <= atol < float("inf"):
        raise InputError(f"atol must be finite and at least 0, got {atol}")
    if max_iterations < 1:
        raise InputError(f"max_iterations must be at least 1, got {max_iterations}")
    if on_failure not in ("record", "raise"):
        raise InputError(f"on_failure must be record or raise, got {on_failure!r}")
