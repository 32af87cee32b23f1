"""The words of the signatures: tensors with their shapes, and what a net, an attack, a judge, a threat, a map are.

Shapes are jaxtyping's: within one signature the same name is the same size, and `*shape` stands for any number of axes.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

State = Inexact[Tensor, "batch *shape"]  # one row a sample
Images = Float[Tensor, "batch *shape"]  # in [0, 1]
Labels = Int[Tensor, "batch"]
Indices = Int[Tensor, "batch"]  # who each image is, whatever batch it is in
Logits = Float[Tensor, "batch classes"]
PerSample = Float[Tensor, "batch"]
Flags = Bool[Tensor, "batch"]
Counts = Int[Tensor, "batch"]
Rows = Inexact[Tensor, "batch unknowns"]
Product = Callable[[Rows], Rows]  # a linear operator, by what it does to each row
Operators = Callable[[Indices], Product]  # those of some samples, by their indices


@runtime_checkable
class Map(Protocol):
    """What has a Jacobian: a function or a module, each sample on its own."""

    def __call__(self, y: State, /) -> State:
        """The image of y, of its shape."""
        ...


@runtime_checkable
class Net(Protocol):
    """A classifier: a function or a module. One with `takes_indices = True` is told which images it sees, by indices=."""

    def __call__(self, x: Images, /) -> Logits:
        """Logits of images in [0, 1]."""
        ...


@runtime_checkable
class Attack(Protocol):
    """What `worst_case` lets at a net. One with `takes_indices = True` is told which images it got, by indices=."""

    def __call__(self, net: Net, x: Images, y: Labels, /) -> Images:
        """Adversarial images like x."""
        ...


@runtime_checkable
class Judge(Protocol):
    """What decides whether an image has fallen. One with `takes_labels = True` is given (x, y)."""

    def __call__(self, x: Images, /) -> tuple[Logits, Flags | None]:
        """The logits, and for each image whether they are to be trusted; None: all are."""
        ...


@runtime_checkable
class Threat(Protocol):
    """Which perturbations of an image are allowed: a solid ball. See `stability.Linf`."""

    @property
    def epsilon(self) -> float:
        """Its radius, in pixel units."""
        ...

    def size(self, delta: State, /) -> PerSample:
        """The norm of each perturbation."""
        ...

    def project(self, delta: State, /) -> State:
        """The nearest perturbation of size <= epsilon."""
        ...

    def steepest(self, gradient: State, /) -> State:
        """The step of size 1 along which a loss with this gradient grows fastest."""
        ...

    def random_start(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, /) -> Tensor:
        """The perturbation of one image, drawn from the ball."""
        ...


@runtime_checkable
class Progress(Protocol):
    """What is told how far something long has come."""

    def __call__(self, done: int, total: int, /) -> None:
        """`done` of `total` parts are done."""
        ...
