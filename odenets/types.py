"""The words of the signatures: tensors with their shapes, and what a field is.

Shapes are jaxtyping's: within one signature the same name is the same size, and `*shape` stands for any number of axes. Python
ignores them, a type checker sees a tensor, and the tests check them at run time (tests/typechecked.py).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

State = Inexact[Tensor, "batch *shape"]  # one row a sample; complex where a test equation is
Images = Float[Tensor, "batch channels height width"]  # in [0, 1]
Logits = Float[Tensor, "batch classes"]
Trajectory = Inexact[Tensor, "_ _ ..."]  # (times, batch, ...); those of several stages differ in all of them
PerSample = Float[Tensor, "batch"]
Flags = Bool[Tensor, "batch"]
Counts = Int[Tensor, "batch"]
Rows = Inexact[Tensor, "batch unknowns"]  # states, or vectors of a solver, flat
Scalar = Float[Tensor, ""]
Time = float | Scalar  # a time, or a step size: a tensor under torch.compile
Product = Callable[[Rows], Rows]  # a linear operator, by what it does to each row


@runtime_checkable
class Field(Protocol):
    """The right-hand side of y' = f(t, y), each sample on its own: a function or a module."""

    def __call__(self, t: Time, y: State, /) -> State:
        """dy/dt at (t, y), of the shape of y."""
        ...
