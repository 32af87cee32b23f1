"""Fields as functions: what a stage hands to its scheme."""

from functools import partial
from itertools import chain

import torch
from torch import nn

from odenets.errors import InputError
from odenets.nets.guard import guarded


def as_function(field, n, running, guard):
    """A field of a stage as f(t, y), with the shape checked.

    Backward passes call f when the forward pass is over, and torch.func.functional_call may have put other parameters back;
    f has those that the module has now, whenever it is called.

    Args:
        field: Module or function, the n-th of the stage.
        n: Its number, for the error.
        running: A list that is emptied when the forward pass is over; None where nobody calls f from then on, so that it
            need not remember the tensors.
        guard: The `Guard` of the pass: the state stays as it is, whatever the field writes into.
    """
    evaluate = guarded(field, guard)
    own = {} if running is None else dict(_tensors(field))
    with_own = evaluate if running is None else guarded(partial(_called, field, own), guard)

    def f(t, y):
        current = running is None or running or all(tensor is own[name] for name, tensor in _tensors(field))
        slope = (evaluate if current else with_own)(t, y)
        if slope.shape != y.shape:
            raise InputError(
                f"field {n} maps a state of shape {tuple(y.shape)} to {tuple(slope.shape)}; it must keep the shape"
            )
        return slope

    f.autonomous = getattr(field, "autonomous", False)
    if hasattr(field, "parts"):
        f.parts = tuple(as_function(part, n, running, guard) for part in field.parts)
    return f


def _called(field, tensors, t, y):
    return torch.func.functional_call(field, tensors, (t, y))


def _tensors(field):
    """Pairs (name, tensor) of the parameters and buffers; a plain function, which `precise` may have made of it, has none."""
    return chain(field.named_parameters(), field.named_buffers()) if isinstance(field, nn.Module) else ()
