"""What schemes with equations to solve share: settings, the stage equations as a residual, and the choice of gradient.

Such an equation may have several roots. The value of the scheme is the one connected to the state: the end of the path of
roots that begins at y for h = 0 and is followed to h, where it gets there without turning back. Solvers start at y and find
it where the step is easy; where it is not, they may land anywhere, and `solver=continuation` follows the path. Source: Hairer &
Wanner II (1996), section IV.14, on existence and uniqueness.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from odenets.errors import InputError
from odenets.schemes.scheme import Scheme, check_backward, combine
from odenets.solve.continuation import Continuation
from odenets.solve.log import Record
from odenets.solve.nonlinear import SOLVERS
from odenets.solve.root import implicit_function
from odenets.solve.rows import as_rows
from odenets.solve.scaling import scaled_norm
from odenets.solve.skew import SkewOperator, skew_root
from odenets.solve.solution import Solution
from odenets.solve.transforms import dual_level, transforming
from odenets.types import Field, PerSample, State, Time

METHODS: dict[str, Callable[..., Callable[..., Solution]]] = {**SOLVERS, "continuation": Continuation}
# Unknowns solved together; CUDA wants larger kernels.
PIECE = {"cpu": 2**18, "cuda": 2**22}


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvingScheme(Scheme, ABC):
    """A scheme that may solve nonlinear equations.

    Args:
        tol: Per sample, ||residual|| <= tol * (residual of the predictor Y = y) + atol, 2-norm, coupled stages stacked.
        max_iterations: Cap on the iterations of a solve, forward and backward.
        solver: One of broyden, anderson, fixed_point, newton, semismooth, continuation. With the default the equations of a
            linear skew field are solved by conjugate gradients.
        on_failure: "record" or "raise".
        fixed: Exactly `max_iterations` iterations, for torch.compile and CUDA graphs.
        backward_tol: Of the linear solve of a backward pass, relative to its right-hand side; 0: tol.
        backward_stop: "sample": each sample's to its own tolerance; "batch": until the norm over the batch is small, which
            leaves more of the small gradients, and makes a gradient depend on its batch-mates: for training alone.
        atol: Absolute tolerance beside the relative one, the same for every sample whatever its step.
    """

    tol: float = 1e-3
    max_iterations: int = 40
    solver: str = "broyden"
    on_failure: str = "record"
    fixed: bool = False
    backward_tol: float = 0.0
    backward_stop: str = "sample"
    atol: float = 0.0
    solve: Callable[..., Solution] = field(init=False, repr=False)  # what the settings come to

    def __post_init__(self) -> None:
        if self.solver not in METHODS:
            raise InputError(f"unknown solver {self.solver!r}; choose from {', '.join(METHODS)}")
        check_backward(self.backward_tol, self.backward_stop)
        chosen = {key: getattr(self, key) for key in ("tol", "max_iterations", "on_failure", "fixed", "atol")}
        object.__setattr__(self, "solve", METHODS[self.solver](**chosen))

    @property
    def looks_at_values(self) -> bool:
        """A solve stops by its residual, unless the number of its iterations is fixed."""
        return self.implicit and not self.fixed

    @property
    def approximate_gradient(self) -> bool:
        """See `Scheme.approximate_gradient`."""
        return self.implicit and (self.backward_tol > self.tol or self.backward_stop == "batch")

    def solved(
        self,
        equations: Callable[[State, State], State],
        base: State,
        floor: PerSample,
        gradient: str,
        record: Record | None,
    ) -> State:
        """The stages base + z with equations(z, base + z) = 0.

        Args:
            equations: (increments, stages) -> residual, (B, ...).
            base: (B, ...). floor: (B,) rounding of the residual.
            gradient: "exact" or "unrolled", see `Scheme.step`. record: As there.
        """
        record, exact = record or Record(), gradient == "exact"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not exact):
            at = base.detach() if exact else base
            guess, scale = record.start(at)
            stages = base + record.end(self.solve(lambda z, base: equations(z, base + z), guess, (at,), scale, floor))
        if not exact:
            return stages
        # Differentiated at the stages, not at the increments: they are what the next step saves anyway.
        return implicit_function(
            lambda stages, base: equations(stages - base, stages),
            stages,
            (base,),
            self.backward_tol or self.tol,
            self.max_iterations,
            record,
            stop=self.backward_stop,
            adjoint=record.adjoint(),
        )

    def pieces(self, record: Record | None, *states: State) -> list[tuple[Any, ...]]:
        """(record, *states) of the pieces of the batch that are solved one after the other.

        Samples are independent, so nothing changes but memory and time: what a solver keeps stays in the cache and is gone
        before the next piece, and each piece stops by itself.

        Args:
            record: As in `Scheme.step`.
            states: Tensors (B, ...), the first of which gives the number of unknowns.
        """
        rows = max(1, PIECE.get(states[0].device.type, PIECE["cuda"]) // max(1, states[0][:1].numel()))
        if len(states[0]) <= rows or self.on_failure == "raise":
            return [(record, *states)]
        records = (None if record is None else record.piece(first) for first in range(0, len(states[0]), rows))
        return list(zip(records, *(state.split(rows) for state in states)))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The states of the pieces as one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


SOLVE_DEFAULTS = {setting.name: setting.default for setting in fields(SolvingScheme) if setting.init}


def solve_stages(
    scheme: SolvingScheme,
    f: Field,
    times: Sequence[Time],
    block: Sequence[Sequence[float]],
    bases: Sequence[State],
    y: State,
    h: Time,
    gradient: str,
    record: Record | None,
) -> list[State]:
    """Stages Y_i = base_i + h sum_j block_ij f(t_j, Y_j) that are solved together.

    The unknowns are the increments Y - base: smaller than the state, and so is their rounding.
    Source: Hairer & Wanner II (1996), section IV.8.

    Args:
        scheme: How they are solved.
        f, y, h, record: As in `Scheme.step`. gradient: "exact" or "unrolled".
        times: Times of the stages.
        block: (m, m) coefficients.
        bases: m states (B, ...), what is known of each stage.

    Returns:
        A list of m stages (B, ...).
    """
    count = len(bases)
    # Adding an increment to the state rounds to the state's precision, and f carries that into the residual.
    floor = 4 * torch.finfo(y.dtype).eps * scaled_norm(as_rows(y.detach()))
    skew: Callable[[], SkewOperator] | None = getattr(f, "as_skew", None)
    default = scheme.solver == SOLVE_DEFAULTS["solver"] and not scheme.fixed and gradient == "exact"
    if skew and default and count == 1 and isinstance(h, float) and not (transforming() or dual_level()):
        return [skew_root(skew(), bases[0], h * block[0][0], scheme, floor, record or Record())]

    def equations(increments: State, stages: State) -> State:
        each, at = ([v] if count == 1 else v.unbind(1) for v in (increments, stages))
        slopes = [f(time, stage) for time, stage in zip(times, at)]
        rows = [combine(increment, -h, row, slopes) for increment, row in zip(each, block)]
        return rows[0] if count == 1 else torch.stack(rows, 1)

    stages = scheme.solved(equations, bases[0] if count == 1 else torch.stack(list(bases), 1), floor, gradient, record)
    return [stages] if count == 1 else list(stages.unbind(1))
