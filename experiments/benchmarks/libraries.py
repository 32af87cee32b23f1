"""Other libraries behind one signature each: what a benchmark calls to let them solve the same problem."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from odenets.types import Field

Solving = Callable[[], Tensor]


def peer(name: str) -> Any:
    """The module `name`, or None where it, or what it needs, is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def torchdiffeq_fixed(field: Field, y: Tensor, method: str, steps: int) -> Solving:
    """A function without arguments that integrates y' = field(t, y) from 0 to 1 in equal steps."""
    times = torch.tensor([0.0, 1.0], device=y.device)
    return lambda: odeint(field, y, times, method=method, options={"step_size": 1 / steps})[-1]


def torchdyn_fixed(field: Field, y: Tensor, method: str, steps: int) -> Solving:
    """See `torchdiffeq_fixed`."""
    module, times = peer("torchdyn.numerics"), torch.linspace(0, 1, steps + 1, device=y.device)
    return lambda: module.odeint(field, y, times, solver=method)[1][-1]


def torchode_fixed(field: Field, y: Tensor, method: str, steps: int) -> Solving:
    """See `torchdiffeq_fixed`; torchode wants states of shape (B, N)."""
    module, shape = peer("torchode"), y.shape
    term = module.ODETerm(lambda t, y: field(t, y.view(shape)).flatten(1))
    times = torch.tensor([[0.0, 1.0]], device=y.device).repeat(len(y), 1)
    solver = module.AutoDiffAdjoint(getattr(module, method)(term=term), module.FixedStepController())
    dt0 = torch.full((len(y),), 1 / steps, device=y.device)
    return lambda: solver.solve(module.InitialValueProblem(y.flatten(1), t_eval=times), dt0=dt0).ys[:, -1].view(shape)


# module, function, {our scheme: its name there}; torchdiffeq's "rk4" is the 3/8 rule.
FIXED_GRID = (
    ("torchdiffeq", torchdiffeq_fixed, {"explicit_euler": "euler", "midpoint": "midpoint", "rk38": "rk4"}),
    ("torchdyn.numerics", torchdyn_fixed, {"explicit_euler": "euler", "midpoint": "midpoint", "rk4": "rk4"}),
    ("torchode", torchode_fixed, {"explicit_euler": "Euler", "heun": "Heun"}),
)


def torchdiffeq_implicit_euler(field: Field, y: Tensor) -> Solving | None:
    """One step of implicit Euler by torchdiffeq's dense Broyden, without arguments; None but in its git version."""
    times = torch.tensor([0.0, 1.0], device=y.device)
    known = "implicit_euler" in peer("torchdiffeq._impl.odeint").SOLVERS
    return (lambda: odeint(field, y, times, method="implicit_euler")[-1]) if known else None


def torchdeq_implicit_euler(solver: str, field: Field, y: Tensor, scale: Tensor, tol: float = 1e-3, cap: int = 40) -> Tensor:
    """One step of implicit Euler with h = 1 by TorchDEQ and its implicit gradient; differentiable.

    Args:
        solver: "anderson" or "broyden", forward and backward.
        scale: (B, 1, ...) norm of the residual at y. The unknown is (z - y) / scale, so that its absolute residual is
            our relative one.
    """
    # Anderson's default ridge of 1e-4 is far above squared residuals at this tolerance, and makes more samples fail.
    deq = (
        peer("torchdeq")
        .get_deq(
            f_solver=solver,
            b_solver=solver,
            ift=True,
            f_tol=tol,
            b_tol=tol,
            f_max_iter=cap,
            b_max_iter=cap,
            f_stop_mode="abs",
            b_stop_mode="rel",
        )
        .train()
    )
    out, _ = deq(lambda u: field(0.0, y + scale * u) / scale, torch.zeros_like(y), solver_kwargs={"lam": 1e-8})
    return y + scale * out[-1]
