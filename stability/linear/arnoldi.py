"""Batched Arnoldi: Krylov bases of many linear operators at once, growing and shrinking together on their device.

Sources: Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6; Stewart (2001), A Krylov-Schur algorithm
for large eigenproblems, SIAM J. Matrix Anal. Appl. 23.
"""

from typing import NamedTuple

import torch

from stability.errors import InputError
from stability.random import direction
from stability.scaling import power_of_two

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


def krylov_memory(y, k=6, dimension=None, memory=MEMORY):
    """Bytes that `spectrum` and its kin will hold in basis vectors for states y (B, ...), told beforehand.

    It grows as dimension x n x samples; nothing is n x n. The batch is worked through in chunks that fit `memory`, one
    sample at least. The graph of f itself comes on top, as for a training step of a chunk.

    Returns:
        `Memory`: bytes_per_sample, chunk (samples at once) and bytes at the peak.
    """
    return memory_of(len(y), y[0].numel(), y.element_size(), k, dimension, memory)


def memory_of(count, n, itemsize, k, dimension, memory):
    """`krylov_memory` for `count` vectors of n entries of `itemsize` bytes."""
    m = basis_size(n, k, dimension)
    # The basis, its better half while it is cut down, and the wanted vectors with their images, complex.
    each = (m + 1 + kept_size(m, k) + 6 * k) * n * itemsize
    chunk = min(count, max(1, memory // each))
    return Memory(each, chunk, each * chunk)


def basis_size(n, k, dimension):
    """Vectors of a full basis: never more than n, and enough for k pairs."""
    if dimension is None:
        dimension = n if n <= EXACT else max(DIMENSION, 4 * k)
    elif isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise InputError(f"dimension must be a whole number of at least 1, got {dimension!r}")
    dimension = max(dimension, k + 4)
    return n if dimension >= n else dimension + dimension % 2


def kept_size(m, k):
    """Vectors that survive a restart."""
    # Even, as m is: of an even number, so many can always be kept without parting a conjugate pair.
    return min(2 * ((m + k + 1) // 4), m - 2)


class Krylov:
    """Orthonormal bases V (B, m + 1, n) and matrices H (B, m + 1, m) with A V_m = V_{m+1} H; apply: (B, n) -> (B, n).

    A is `apply` divided by `unit` (B, 1), by default the power of two of its first product: no square leaves its range.
    """

    def __init__(self, apply, like, count, n, limit, unit=None):
        self.apply, self.m, self.n, self.products, self.unit = apply, 0, n, 0, unit
        self.V = torch.zeros(count, limit + 1, n, dtype=like.dtype, device=like.device)
        self.H = torch.zeros(count, limit + 1, limit, dtype=like.dtype, device=like.device)
        # The same start for every sample: what a sample gives does not depend on its place in the batch.
        self.V[:, 0] = direction(n, 0).to(like)

    def grow(self, m):
        """Extend to dimension m <= n."""
        for j in range(self.m, m):
            w = self._product(j)
            size = w.norm(dim=1)
            w, self.H[:, : j + 1, j] = self._orthogonalise(w, j + 1, size)
            rest = w.norm(dim=1)
            if j + 1 == self.n:
                break  # the space is full: what is left is rounding
            # An invariant subspace ends the sequence, not the search: go on with a fresh direction, decoupled by a
            # zero.
            ended = rest <= 10 * torch.finfo(w.dtype).eps * size
            if bool(ended.any()):
                w = torch.where(ended[:, None], self._fresh(j + 1, self.products), w)
            self.H[:, j + 1, j] = torch.where(ended, 0, rest)
            self.V[:, j + 1] = w / w.norm(dim=1, keepdim=True)
        self.m = m

    def _product(self, j):
        w = self.apply(self.V[:, j].contiguous())
        self.products += 1
        if self.unit is None:
            self.unit = power_of_two(w)
        return w / self.unit

    def _fresh(self, count, seed):
        """(B, n), orthogonal to the first `count` vectors of each basis."""
        fresh = direction(self.n, seed).to(self.V).expand(len(self.V), -1)
        return self._orthogonalise(fresh, count, torch.full_like(fresh[:, 0], torch.inf))[0]

    def _orthogonalise(self, w, count, size):
        basis = self.V[:, :count]
        c = w[:, None] @ basis.mT  # rows from the left: ten times faster on a CPU than columns from the right
        w = torch.baddbmm(w[:, None], c, basis, alpha=-1)[:, 0]
        # Twice is enough (Giraud, Langou, Rozloznik 2005), and once where little cancelled (Daniel et al. 1976).
        if bool((w.norm(dim=1) < 0.7 * size).any()):
            again = w[:, None] @ basis.mT
            w, c = torch.baddbmm(w[:, None], again, basis, alpha=-1)[:, 0], c + again
        return w, c[:, 0]

    def hessenberg(self):
        """(B, m + 1, m), H as a host array in float64, in units of `unit`."""
        return self.H[:, : self.m + 1, : self.m].double().cpu().numpy()

    def select(self, rows, apply):
        """Keep the samples `rows`, in rising order; `apply` is their operator."""
        for place, row in enumerate(rows.tolist()):
            if place != row:  # in place: there may be no memory for a second basis
                self.V[place], self.H[place] = self.V[row], self.H[row]
        self.apply, self.V, self.H, self.unit = apply, self.V[: len(rows)], self.H[: len(rows)], self.unit[rows]

    def restart(self, Z, T, b):
        """Shrink to the basis V Z, on which A is T, with coupling b to the next vector."""
        m, p = Z.shape[1:]
        Z, T, b = (torch.from_numpy(part).to(self.V) for part in (Z, T, b))
        self.V[:, :p], self.V[:, p] = Z.mT @ self.V[:, :m], self.V[:, m].clone()
        self.H.zero_()
        self.H[:, :p, :p], self.H[:, p, :p] = T, b
        self.m = p

    def deflate(self, Q, seed):
        """Start with the rows of Q (B, p, n), orthonormal and taken as invariant, and a random direction behind them.

        A Krylov space holds one copy of a multiple eigenvalue, whatever its size: the others are in the complement.
        """
        p = Q.shape[1]
        self.V[:, :p] = Q
        for j in range(p):
            self.H[:, :p, j] = (self.V[:, :p] @ self._product(j)[:, :, None])[:, :, 0]
        w = self._fresh(p, seed)
        self.V[:, p] = w / w.norm(dim=1, keepdim=True)
        self.m = p
