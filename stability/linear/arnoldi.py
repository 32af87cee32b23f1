"""The Krylov process as eigenvalues need it: what it holds, where it starts, and how it goes on where a space is invariant."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stability.errors import InputError
from stability.krylov import Krylov, ended, orthogonalise
from stability.random import direction
from stability.types import Product, Rows, State

MEMORY = 2**29  # bytes of basis vectors held at once
DIMENSION = 48  # basis vectors of a sample: fewer cost more restarts, more cost more orthogonalisation
EXACT = 160  # up to so many entries the basis fills the space, where its size is left open: nothing can then be missed


class Memory(NamedTuple):
    """What a Krylov computation will hold.

    bytes_per_sample: bytes for each sample. chunk: samples at once. bytes: at the peak.
    """

    bytes_per_sample: int
    chunk: int
    bytes: int


def krylov_memory(y: State, k: int = 6, dimension: int | None = None, memory: int = MEMORY) -> Memory:
    """Bytes that `spectrum` and its kin will hold in basis vectors for states y (B, ...), told beforehand.

    It grows as dimension x n x samples; nothing is n x n. The batch is worked through in chunks that fit `memory`, one
    sample at least. The graph of f itself comes on top, as for a training step of a chunk.

    Returns:
        `Memory`: bytes_per_sample, chunk (samples at once) and bytes at the peak.
    """
    return memory_of(len(y), y[0].numel(), y.element_size(), k, dimension, memory)


def memory_of(count: int, n: int, itemsize: int, k: int, dimension: int | None, memory: int) -> Memory:
    """`krylov_memory` for `count` vectors of n entries of `itemsize` bytes."""
    m = basis_size(n, k, dimension)
    # The basis, its better half while it is cut down, and the wanted vectors with their images, complex.
    each = (m + 1 + kept_size(m, k) + 6 * k) * n * itemsize
    chunk = min(count, max(1, memory // each))
    return Memory(each, chunk, each * chunk)


def basis_size(n: int, k: int, dimension: int | None) -> int:
    """Vectors of a full basis: never more than n, and enough for k pairs."""
    if dimension is None:
        dimension = n if n <= EXACT else max(DIMENSION, 4 * k)
    elif isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise InputError(f"dimension must be a whole number of at least 1, got {dimension!r}")
    dimension = max(dimension, k + 4)
    return n if dimension >= n else dimension + dimension % 2


def kept_size(m: int, k: int) -> int:
    """Vectors that survive a restart."""
    # Even, as m is: of an even number, so many can always be kept without parting a conjugate pair.
    return min(2 * ((m + k + 1) // 4), m - 2)


def krylov_process(apply: Product, like: Tensor, count: int, n: int, limit: int, unit: Tensor | None = None) -> Krylov:
    """The Krylov process of `count` operators (count, n) -> (count, n), for bases of `limit` vectors and one more.

    Each sample starts with the same direction, whatever its place in the batch. An invariant subspace ends the sequence, not
    the search: it goes on with a fresh direction, decoupled by a zero.
    """
    return Krylov(apply, direction(n, 0).to(like).expand(count, -1), limit, unit=unit, proceed=_fresh_where_ended)


def _fresh_where_ended(krylov: Krylov, w: Rows, rest: Tensor, c: Tensor) -> tuple[Rows, Tensor, Tensor]:
    if krylov.m + 1 == krylov.n:  # the space is full: what is left is rounding
        return torch.zeros_like(w), torch.ones_like(rest), torch.zeros_like(rest)
    stopped = ended(rest, c)
    if not bool(stopped.any()):
        return w, rest, rest
    fresh, length = _fresh(krylov, krylov.m + 1, krylov.products)
    return (
        torch.where(stopped[:, None], fresh, w),
        torch.where(stopped, length, rest),
        torch.where(stopped, 0, rest),
    )


def _fresh(krylov: Krylov, count: int, seed: int) -> tuple[Rows, Tensor]:
    """(B, n), orthogonal to the first `count` vectors of each basis, and its norms (B,)."""
    fresh = direction(krylov.n, seed).to(krylov.V).expand(len(krylov.V), -1)
    w, _, rest = orthogonalise(fresh, krylov.basis(count), True)
    return w, rest


def grow(krylov: Krylov, m: int) -> None:
    """Extend to dimension m <= n."""
    while krylov.m < m:
        krylov.step()


def unit_of(krylov: Krylov) -> Float[Tensor, "batch 1"]:
    """What a process that has grown divides its operators by."""
    assert isinstance(krylov.unit, Tensor), "known from the first product on"
    return krylov.unit


def hessenberg(krylov: Krylov) -> Float[np.ndarray, "batch rows columns"]:
    """(B, m + 1, m), H as a host array in float64, in units of the process."""
    return krylov.hessenberg().double().cpu().numpy()


def deflate(krylov: Krylov, Q: Tensor, seed: int) -> None:
    """Start with the rows of Q (B, p, n), orthonormal and taken as invariant, and a random direction behind them.

    A Krylov space holds one copy of a multiple eigenvalue, whatever its size: the others are in the complement.
    """
    p = Q.shape[1]
    krylov.V[:, :p] = Q
    krylov.columns = [((krylov.basis(p) @ krylov.product(j)[:, :, None])[:, :, 0],) for j in range(p)]
    w, length = _fresh(krylov, p, seed)
    krylov.V[:, p] = w / length[:, None]
