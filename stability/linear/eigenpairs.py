"""Wanted eigenvalues of many linear operators at once: batched Krylov-Schur, that is Arnoldi with thick restarts.

A full basis is cut down to the wanted half of its Schur vectors and grown again, so memory does not grow with the
difficulty; a basis as large as the space is exact. A sample that has converged leaves the batch. Source: Stewart (2001),
SIAM J. Matrix Anal. Appl. 23.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack

from stability.linear.arnoldi import MEMORY, Krylov, basis_size, kept_size, memory_of

MAX_PRODUCTS = 3000


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Wanted eigenvalues of each sample's Jacobian, the most wanted first; tensors on the host.

    values: (B, k), complex. A conjugate pair may be cut at the k-th place; its member with Im > 0 comes first.
    residuals: (B, k), ||J^T w - lambda w|| / scale of the unit eigenvector, from an actual product. A backward error:
        lambda is an exact eigenvalue of a matrix that differs from J by so much.
    scale: (B, k), |lambda| or, where that is larger, 10 eps ||J|| / tol: below it rounding decides.
    converged: (B, k) bool, residual <= tol.
    steps: (B,) int, size of the Krylov space before its first restart.
    products: products with J^T spent on the sample that needed most.
    vectors: (B, k, n) complex eigenvectors on the device where they were asked for, else None.
    """

    values: torch.Tensor
    residuals: torch.Tensor
    scale: torch.Tensor
    converged: torch.Tensor
    steps: torch.Tensor
    products: int
    vectors: torch.Tensor | None = None


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


def leading(operator, like, count, n, search):
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
    names = ["values", "residuals", "scale", "converged", "steps", *["vectors"] * search.vectors]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined, products=max(part.products for part in parts))


def _leading(operator, rows, like, n, search):
    k, tol, count, eps = search.k, search.tol, len(rows), torch.finfo(like.dtype).eps
    limit = basis_size(n, k, search.dimension)
    krylov = Krylov(operator(rows), like, count, n, limit)
    values, scale = np.zeros((count, k), complex), np.zeros((count, k))
    X = torch.zeros(count, 2 * k, n, dtype=like.dtype, device=like.device)  # real and imaginary parts of eigenvectors
    pending, steps, m = torch.arange(count), torch.full((count,), limit), min(limit, max(20, 2 * k + 4))
    wanted = _wanted_symmetric if search.symmetric else _wanted
    while True:
        krylov.grow(m)
        H, p = krylov.hessenberg(), m if m == n else kept_size(m, k)
        theta, S, Z, T, b = (np.stack(part) for part in zip(*[wanted(h, k, search.which, p) for h in H]))
        norm = np.sqrt((H**2).sum(1)).max(1)  # max ||A v_j||: a lower bound of ||A||
        floor = norm if search.symmetric and search.which == "LR" else 10 * eps / tol * norm
        size = np.maximum(abs(theta), np.maximum(floor, np.finfo(float).tiny)[:, None])
        # The last row of A V = V H, applied to an eigenvector of H, is its residual.
        done = (abs(H[:, m, m - 1, None] * S[:, -1]) <= tol / 2 * size).all(1)
        done |= m == n or krylov.products >= search.max_products
        values[pending[done]], scale[pending[done]] = theta[done], size[done]
        if krylov.products == m:  # as yet unrestarted
            steps[pending[done]] = m
        for row in np.flatnonzero(done):
            X[pending[row]] = torch.from_numpy(np.concatenate([S[row].real, S[row].imag], 1)).to(X).T @ krylov.V[row, :m]
        if done.all():
            break
        if done.any():
            pending = pending[~done]
            krylov.select(torch.from_numpy(np.flatnonzero(~done)), operator(rows[pending.to(rows.device)]))
        if m == limit:
            krylov.restart(Z[~done], T[~done], b[~done])
        else:
            m = min(limit, m + 2 * max(4, m // 6))
    products = krylov.products
    del krylov
    residuals, more = _residuals(operator(rows), X, values)
    scale = torch.from_numpy(scale)
    residuals = torch.from_numpy(residuals) / scale
    vectors = torch.complex(*X.split(k, 1)) if search.vectors else None
    return Spectrum(torch.from_numpy(values), residuals, scale, residuals <= tol, steps, products + more, vectors)


def _wanted(h, k, which, p):
    """Of H (m + 1, m): k eigenvalues and unit eigenvectors; basis Z, block T and coupling b of p Schur vectors."""
    m = h.shape[1]
    T, _, real, imaginary, Z, *_ = lapack.dgees(lambda *_: None, h[:m])
    key = np.hypot(real, imaginary) if which == "LM" else real
    chosen, free = np.zeros(m, np.int32), p
    for i in np.argsort(-key, kind="stable"):
        width = 1 if imaginary[i] == 0 else 2
        if imaginary[i] >= 0 and width <= free:
            chosen[i:i + width] = 1
            free -= width
    if p < m:
        T, Z, *_ = lapack.dtrsen(chosen, T, Z, job="N", lwork=m, liwork=1)
    T, Z = T[:p, :p], Z[:, :p]
    theta, S = (part.astype(complex) for part in np.linalg.eig(T))
    order = np.argsort(-(abs(theta) if which == "LM" else theta.real), kind="stable")[:k]
    return theta[order], Z @ S[:, order], Z, T, h[m, m - 1] * Z[-1]


def _wanted_symmetric(h, k, which, p):
    """`_wanted` of a symmetric matrix: real, and complete where eigenvalues coincide."""
    m = h.shape[1]
    values, Z = np.linalg.eigh(h[:m])  # of the lower triangle: the coefficients of Lanczos
    order = np.argsort(-(abs(values) if which == "LM" else values), kind="stable")[:p]
    values, Z = values[order], Z[:, order]
    return values[:k].astype(complex), Z[:, :k].astype(complex), Z, np.diag(values), h[m, m - 1] * Z[-1]


def _residuals(apply, X, values):
    """||A x - lambda x|| / ||x|| of x = X_j + i X_{k+j} by products with both parts, (B, k); and the products spent."""
    result, products, k = np.empty(values.shape), 0, values.shape[1]
    for j in range(k):
        value = torch.from_numpy(values[:, j, None]).to(X.device)
        real, imaginary = X[:, j].contiguous(), X[:, k + j].contiguous()
        images = [apply(real), apply(imaginary) if bool(imaginary.any()) else torch.zeros_like(real)]
        products += 2 if bool(imaginary.any()) else 1
        x, image = torch.complex(real.double(), imaginary.double()), torch.complex(*(part.double() for part in images))
        result[:, j] = ((image - value * x).norm(dim=1) / x.norm(dim=1)).cpu().numpy()
    return result, products
