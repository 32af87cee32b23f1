"""Wanted eigenvalues of many linear operators at once: batched Krylov-Schur, that is Arnoldi with thick restarts.

A full basis is cut down to the wanted half of its Schur vectors and grown again, so memory does not grow with the
difficulty; a basis as large as the space is exact. A sample that has converged leaves the batch. Source: Stewart (2001),
SIAM J. Matrix Anal. Appl. 23.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from scipy.linalg import lapack
from torch import Tensor

from stability.krylov import Krylov
from stability.linear.arnoldi import (
    EXACT,
    MEMORY,
    basis_size,
    deflate,
    grow,
    hessenberg,
    kept_size,
    krylov_process,
    memory_of,
    unit_of,
)
from stability.types import Counts, Flags, Indices, Operators, Product

MAX_PRODUCTS = 3000
BEHIND = 1e-3  # relative residual, to which what lies behind the wanted eigenvalues is found


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Wanted eigenvalues of each sample's Jacobian, the most wanted first; tensors on the host.

    values: (B, k), complex. A conjugate pair may be cut at the k-th place; its member with Im > 0 comes first.
    residuals: (B, k), ||J^T w - lambda w|| / scale of the unit eigenvector, from an actual product. A backward error:
        lambda is an exact eigenvalue of a matrix that differs from J by so much.
    scale: (B, k), |lambda| or, where that is larger, 10 eps ||J|| / tol: below it rounding decides.
    converged: (B, k) bool, residual <= tol; behind the first value only where `settled`, for a copy may be missing.
    settled: (B,) bool, the search ended within its products, and found nothing that is wanted more.
    steps: (B,) int, size of the Krylov space before its first restart.
    products: products with J^T spent on the sample that needed most.
    vectors: (B, k, n) complex eigenvectors on the device where they were asked for, else None.
    """

    values: Complex[Tensor, "batch k"]
    residuals: Float[Tensor, "batch k"]
    scale: Float[Tensor, "batch k"]
    converged: Bool[Tensor, "batch k"]
    settled: Flags
    steps: Counts
    products: int
    vectors: Complex[Tensor, "batch k n"] | None = None


class Search(NamedTuple):
    """Which eigenvalues, how accurately and at what cost; see `stability.spectrum`.

    symmetric: Every operator is; the scale of "LR" is then its norm.
    vectors: Return the eigenvectors too.
    """

    k: int
    which: str
    tol: float
    dimension: int | None = None
    max_products: int = MAX_PRODUCTS
    memory: int = MEMORY
    symmetric: bool = False
    vectors: bool = False


def leading(operator: Operators, like: Tensor, count: int, n: int, search: Search) -> Spectrum:
    """The wanted eigenvalues of each of `count` operators, a `Spectrum`.

    Args:
        operator: Indices of samples (b,) -> their operator, a map (b, n) -> (b, n), each row on its own.
        like: Tensor whose dtype and device the basis takes.
        count: Samples.
        n: Entries of a vector.
        search: A `Search`.
    """
    chunk = memory_of(count, n, like.element_size(), search.k, search.dimension, search.memory).chunk
    parts = [_leading(operator, rows, like, n, search) for rows in torch.arange(count, device=like.device).split(chunk)]
    names = ["values", "residuals", "scale", "converged", "settled", "steps", *["vectors"] * search.vectors]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined, products=max(part.products for part in parts))


def _leading(operator: Operators, rows: Indices, like: Tensor, n: int, search: Search) -> Spectrum:
    k, tol, count, limit = search.k, search.tol, len(rows), basis_size(n, search.k, search.dimension)
    krylov = krylov_process(operator(rows), like, count, n, limit)
    m = limit if limit == n <= EXACT else min(limit, max(20, 2 * k + 4))
    found = _iterated(krylov, operator, rows, search, m)
    unit, spent = found.unit, krylov.products
    del krylov
    # A copy of a multiple eigenvalue, or one that the first start missed, shows in the complement of what was found. Of the
    # first eigenvalue alone a copy says nothing new.
    pending, passes = (found.settled & ~found.full) if k > 1 else np.zeros(count, bool), 0
    while pending.any():
        if spent >= search.max_products:
            found.settled[pending] = False
            break
        passes, before, widths = passes + 1, pending.copy(), _widths(found.theta)
        pending[:] = False
        deepest = 0
        for p in np.unique(widths[before]):
            group = np.flatnonzero(before & (widths == p))
            here = torch.from_numpy(group).to(rows.device)
            Q = _orthonormal(found.X[here], found.theta[group])
            krylov = krylov_process(operator(rows[here]), like, len(group), n, limit, unit[here])
            deflate(krylov, Q, passes)
            again = _iterated(
                krylov, operator, rows[here], search._replace(max_products=search.max_products - spent), min(limit, p + 20), p
            )
            deepest = max(deepest, krylov.products)
            del krylov
            key, key_before = (_key(theta, search.which) for theta in (again.theta, found.theta[group]))
            # By values, not by vectors: rounding couples copies, and their eigenvectors may come out all but parallel.
            new = (key > key_before + tol * again.size).any(1)
            pending[group] = new & again.settled & ~again.full
            for name in ("theta", "size", "settled", "full"):
                getattr(found, name)[group] = getattr(again, name)
            found.X[here] = again.X
        spent += deepest
    left, more = _residuals(operator(rows), found.X, found.theta, unit)
    unit = unit.double().cpu()
    residuals = torch.from_numpy(left / found.size)
    vectors = torch.complex(*found.X.split(k, 1)) if search.vectors else None
    settled = torch.from_numpy(found.settled)
    converged = (residuals <= tol) & (settled[:, None] | (torch.arange(k) == 0))
    return Spectrum(
        torch.from_numpy(found.theta) * unit,
        residuals,
        torch.from_numpy(found.size) * unit,
        converged,
        settled,
        found.steps,
        spent + more,
        vectors,
    )


@dataclass
class _Found:
    """Of each sample, in units of the Krylov computation: theta and size (B, k), eigenvectors X (B, 2k, n) as real and
    imaginary parts, steps before a restart; settled: within the products allowed; full: the basis filled the space."""

    theta: np.ndarray
    size: np.ndarray
    X: Tensor
    steps: Tensor
    settled: np.ndarray
    full: np.ndarray
    unit: Tensor


def _iterated(krylov: Krylov, operator: Operators, rows: Indices, search: Search, m: int, locked: int = 0) -> _Found:
    """Grow and restart `krylov` from dimension m on until each sample's wanted pairs stand; a `_Found`.

    locked: Size of the space that `krylov` starts with. What lies behind it has to stand too, so far as to be known to be
        wanted less.
    """
    k, tol, count, n, eps = search.k, search.tol, len(rows), krylov.n, torch.finfo(krylov.V.dtype).eps
    limit = krylov.V.shape[1] - 1
    X = krylov.V.new_zeros(count, 2 * k, n)
    grow(krylov, m)
    found = _Found(
        np.zeros((count, k), complex),
        np.zeros((count, k)),
        X,
        torch.full((count,), limit),
        np.zeros(count, bool),
        np.zeros(count, bool),
        unit_of(krylov),
    )
    pending = torch.arange(count)
    wanted = _wanted_symmetric if search.symmetric else _wanted
    while True:
        H, p = hessenberg(krylov), m if m == n else kept_size(m, k)
        theta, S, Z, T, b = (np.stack(part) for part in zip(*[wanted(h, min(k + 2, p), search.which, p) for h in H]))
        norm = np.sqrt((H**2).sum(1)).max(1)  # max ||A v_j||: a lower bound of ||A||
        floor = norm if search.symmetric and search.which == "LR" else 10 * eps / tol * norm
        size = np.maximum(abs(theta), np.maximum(floor, np.finfo(float).tiny)[:, None])[:, :k]
        # The last row of A V = V H, applied to an eigenvector of H, is its residual.
        residual, key = abs(H[:, m, m - 1, None] * S[:, -1]), _key(theta, search.which)
        settled = (residual[:, :k] <= tol / 2 * size).all(1)
        if locked and locked < theta.shape[1]:
            # A residual says that an eigenvalue is near, not that none is further out: only once it is small does the Krylov
            # space hold the outermost one.
            settled &= residual[:, locked] <= min(tol**0.5, BEHIND) * size[:, -1]
            settled &= key[:, locked] + residual[:, locked] <= key[:, k - 1] + tol * size[:, -1]
        settled |= m == n
        done = settled | (krylov.products >= search.max_products)
        at = pending[done]
        found.theta[at], found.size[at], found.settled[at], found.full[at] = theta[done, :k], size[done], settled[done], m == n
        if krylov.products == m:  # as yet unrestarted
            found.steps[at] = m
        for row in np.flatnonzero(done):
            pair = np.concatenate([S[row, :, :k].real, S[row, :, :k].imag], 1)
            X[pending[row]] = torch.from_numpy(pair).to(X).T @ krylov.V[row, :m]
        if done.all():
            return found
        if done.any():
            pending = pending[~done]
            krylov.select(torch.from_numpy(np.flatnonzero(~done)), operator(rows[pending.to(rows.device)]))
        if m == limit:
            krylov.restart(*(torch.from_numpy(part[~done]).to(X) for part in (Z, T, b)))
        else:
            m = min(limit, m + 2 * max(4, m // 6))
        grow(krylov, m)


def _key(theta: np.ndarray, which: str) -> np.ndarray:
    return abs(theta) if which == "LM" else theta.real


def _widths(theta: np.ndarray) -> np.ndarray:
    """(B,) dimension of the real space of each row's eigenvectors: a conjugate pair cut at the end counts whole."""
    return (1.0 * (theta.imag == 0) + 2 * (theta.imag > 0)).sum(1).astype(int)


def _orthonormal(X: Tensor, theta: np.ndarray) -> Tensor:
    """(B, p, n) rows spanning what the eigenvectors X of rows of equal `_widths` span."""
    k = theta.shape[1]
    rows = [
        [i for j in range(k) for i in ([j] if value[j].imag == 0 else [j, k + j] if value[j].imag > 0 else [])]
        for value in theta
    ]
    chosen = torch.stack([x[row] for x, row in zip(X, rows)])
    return torch.linalg.qr(chosen.mT)[0].mT


def _wanted(h: np.ndarray, k: int, which: str, p: int) -> tuple[np.ndarray, ...]:
    """Of H (m + 1, m): k eigenvalues and unit eigenvectors; basis Z, block T and coupling b of p Schur vectors."""
    m = h.shape[1]
    T, _, real, imaginary, Z, *_ = lapack.dgees(lambda *_: None, h[:m])
    key = np.hypot(real, imaginary) if which == "LM" else real
    chosen, free = np.zeros(m, np.int32), p
    for i in np.argsort(-key, kind="stable"):
        width = 1 if imaginary[i] == 0 else 2
        if imaginary[i] >= 0 and width <= free:
            chosen[i : i + width] = 1
            free -= width
    if p < m:
        T, Z, *_ = lapack.dtrsen(chosen, T, Z, job="N", lwork=m, liwork=1)
    T, Z = T[:p, :p], Z[:, :p]
    theta, S = (part.astype(complex) for part in np.linalg.eig(T))
    order = np.argsort(-(abs(theta) if which == "LM" else theta.real), kind="stable")[:k]
    return theta[order], Z @ S[:, order], Z, T, h[m, m - 1] * Z[-1]


def _wanted_symmetric(h: np.ndarray, k: int, which: str, p: int) -> tuple[np.ndarray, ...]:
    """`_wanted` of a symmetric matrix: real, and complete where eigenvalues coincide."""
    m = h.shape[1]
    values, Z = np.linalg.eigh(h[:m])  # of the lower triangle: the coefficients of Lanczos
    order = np.argsort(-(abs(values) if which == "LM" else values), kind="stable")[:p]
    values, Z = values[order], Z[:, order]
    return values[:k].astype(complex), Z[:, :k].astype(complex), Z, np.diag(values), h[m, m - 1] * Z[-1]


def _residuals(apply: Product, X: Tensor, values: np.ndarray, unit: Tensor) -> tuple[np.ndarray, int]:
    """||A x - lambda x|| / ||x|| of x = X_j + i X_{k+j} by products with both parts, (B, k), in units of A as `values` are;
    and the products spent."""
    result, products, k = np.empty(values.shape), 0, values.shape[1]
    for j in range(k):
        value = torch.from_numpy(values[:, j, None]).to(X.device)
        real, imaginary = X[:, j].contiguous(), X[:, k + j].contiguous()
        images = [apply(real), apply(imaginary) if bool(imaginary.any()) else torch.zeros_like(real)]
        products += 2 if bool(imaginary.any()) else 1
        x = torch.complex(real.double(), imaginary.double())
        image = torch.complex(*((part / unit).double() for part in images))
        result[:, j] = ((image - value * x).norm(dim=1) / x.norm(dim=1)).cpu().numpy()
    return result, products
