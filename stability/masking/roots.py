"""Which root of an implicit step a network's answer rests on: the one connected to the state, or wherever the solver landed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from odenets import ODEStage, evaluate, stages, tightened
from stability.attacks.images import evaluating
from stability.types import Flags, Images, Logits

AGREE = 1e-2  # of the spread of the logits; solves to 1e-6 differ by 1e-6 to 1e-4 of it, two roots by 0.1 and more


def path_dependent(net: nn.Module, x: Images, tol: float = 1e-6, batch_size: int = 512) -> Flags | None:
    """Which images have logits that hang on the path of the solver.

    Every equation is solved twice to `tol`: cold, as the judge does, and by continuation in the step size (`odenets`'
    `Continuation`), which ends at the root connected to the state, or nowhere where the path of roots turns back. An image
    on which the first converges, and the second does not or gives other logits, has no value that the scheme defines: another
    tolerance, precision or neighbouring pixel may bring another class.

    Args:
        net: Any module x -> logits (B, classes); evaluated in eval mode.
        x: Images, (B, ...).
        tol: Tolerance of both solves, or the net's own, if smaller.
        batch_size: Images solved at once.

    Returns:
        (B,) bool; images whose equations the cold solve leaves unsolved are False. None where the net solves no nonlinear
        equation.
    """
    if not solving(net):
        return None
    found = []
    with torch.no_grad(), evaluating(net), tightened(net, tol):
        for part in x.split(batch_size):
            logits, outcome = evaluate(net, part.clone())
            found.append(off_path(net, part, logits, cast(Tensor, outcome.converged)))
    return torch.cat(found)


def off_path(net: nn.Module, x: Images, logits: Logits, solved: Flags) -> Flags:
    """The same for images that were solved already, at the present tolerances.

    Args:
        net, x: As for `path_dependent`.
        logits, solved: (B, classes) and (B,) bool, what the solve found.

    Returns:
        (B,) bool.
    """
    found = torch.zeros_like(solved)
    if bool(solved.any()) and solving(net):
        with continued(net):
            again, outcome = evaluate(net, x[solved])
        found[solved] = ~cast(Tensor, outcome.converged) | ~_same(again, logits[solved])
    return found


def solving(net: nn.Module) -> list[ODEStage]:
    """The stages whose equations are nonlinear: a linear system has one root."""
    return [stage for stage in stages(net).values() if stage.scheme.implicit and "solver" in stage.scheme.parameters]


@contextmanager
def continued(net: nn.Module) -> Iterator[nn.Module]:
    """Within the context nonlinear equations are solved by continuation in the step size; restored afterwards."""
    before = {stage: stage.scheme for stage in solving(net)}
    try:
        for stage, scheme in before.items():
            stage.configure(scheme=replace(cast(Any, scheme), solver="continuation"))
        yield net
    finally:
        for stage, scheme in before.items():
            stage.configure(scheme=scheme)


def _same(logits: Logits, reference: Logits) -> Flags:
    """(B,) bool: equal up to the tolerance of the solves and rounding."""
    logits, reference = logits.flatten(1).double(), reference.flatten(1).double()
    rounding = 100 * torch.finfo(torch.float32).eps * reference.abs().amax(1)
    return (logits - reference).abs().amax(1) <= AGREE * (reference.amax(1) - reference.amin(1)) + rounding
