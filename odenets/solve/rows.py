"""States as rows: the batched vectors that iterations compute with, each sample a row of its own."""

import torch
from torch import Tensor

from odenets.types import Rows, State


def as_rows(v: State) -> Rows:
    """(B, ...) as (B, N), in the order of the axes; a state (B,) too."""
    return v.flatten(1) if v.dim() > 1 else v[:, None]


def row_norm(v: Rows) -> Tensor:
    """(B,) 2-norm of each row."""
    # One norm for each sample: a norm over the batch would let one image change its neighbour's output.
    return torch.linalg.vector_norm(v, dim=1)


def row_dot(u: Rows, v: Rows) -> Tensor:
    """<u, v> of each row, as a column (B, 1) that multiplies rows; conjugate-linear in u."""
    return torch.linalg.vecdot(u, v)[:, None]
