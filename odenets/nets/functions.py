"""Fields as functions: what a stage hands to its scheme."""

from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from odenets.errors import InputError
from odenets.nets.guard import Guard, guarded
from odenets.types import Field, State, Time


def as_function(field: Field, n: int, running: list[bool] | None, guard: Guard, channels_last: bool = False) -> Field:
    """A field of a stage as f(t, y), with the shape checked.

    Backward passes call f when the forward pass is over, and torch.func.functional_call may have put other parameters back;
    f has those that the module has now, whenever it is called.

    Args:
        field: Module or function, the n-th of the stage.
        n: Its number, for the error.
        running: A list that is emptied when the forward pass is over; None where nobody calls f from then on, so that it
            need not remember the tensors.
        guard: The `Guard` of the pass: the state stays as it is, whatever the field writes into.
        channels_last: f takes and returns (B, H, W, C), and shows the field the same memory as (B, C, H, W).
    """
    evaluate = guarded(field, guard)
    own = {} if running is None else dict(_tensors(field))
    with_own = evaluate if running is None else guarded(partial(_called, field, own), guard)

    def f(t: Time, y: State) -> State:
        current = running is None or running or all(tensor is own[name] for name, tensor in _tensors(field))
        if channels_last:
            y = y.movedim(-1, 1)
        slope = (evaluate if current else with_own)(t, y)
        if slope.shape != y.shape:
            raise InputError(
                f"field {n} maps a state of shape {tuple(y.shape)} to {tuple(slope.shape)}; it must keep the shape"
            )
        return slope.movedim(1, -1) if channels_last else slope

    named: Any = f  # functions may have attributes, of which mypy knows none
    named.autonomous = getattr(field, "autonomous", False)
    if hasattr(field, "as_skew") and not channels_last:
        named.as_skew = field.as_skew
    if hasattr(field, "parts"):
        named.parts = tuple(as_function(part, n, running, guard, channels_last) for part in field.parts)
    return f


def _called(field: Field, tensors: dict[str, torch.Tensor], t: Time, y: State) -> State:
    return torch.func.functional_call(field, tensors, (t, y))  # type: ignore[arg-type] # a module, or it has no tensors


def _tensors(field: Field) -> Iterable[tuple[str, torch.Tensor]]:
    """Pairs (name, tensor) of the parameters and buffers; a plain function, which `precise` may have made of it, has none."""
    return chain(field.named_parameters(), field.named_buffers()) if isinstance(field, nn.Module) else ()
