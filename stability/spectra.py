"""Eigenvalues, log-norm and norm of Jacobians, one for each sample, from products alone.

Arnoldi for all samples of a batch at once on their device, with full re-orthogonalisation and without restarts: the
Krylov space grows until the wanted pairs have converged, and a space as large as the state is exact. Eigenvalues are
taken of J^T, which has those of J: a product is then one backward pass, three times cheaper than a forward-mode one,
and possible through every stage. Source: Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6.
"""
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from stability.jacobian import _check_state, direction, forward_product, reverse_product

FIRST_DIMENSION = 40  # Krylov dimension at the first check
MEMORY = 2**29  # bytes of basis vectors held at once


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Wanted eigenvalues of each sample's Jacobian, the most wanted first; complex tensors on the host.

    values: (B, k), complex. A conjugate pair may be cut at the k-th place; its member with Im > 0 comes first.
    residuals: (B, k), ||J^T w - lambda w|| of the unit eigenvector, from an actual product, relative to |lambda| or,
        where that is larger, to 10 eps ||J|| / tol: below it rounding decides. A backward error: lambda is an exact
        eigenvalue of a matrix that differs from J by so much.
    converged: (B, k) bool, residual <= tol.
    products: products with J^T spent on each sample.
    """

    values: torch.Tensor
    residuals: torch.Tensor
    converged: torch.Tensor
    products: int


def spectrum(f, y, k=6, which="LM", tol=None, max_dimension=300):
    """The k eigenvalues of largest modulus, or the k rightmost ones, of each sample's Jacobian.

    Args:
        f: (B, ...) -> (B, ...), each sample on its own; a module or an `ODEStage` too (with its gradient "exact").
        y: States (B, ...), float32 or float64, on any device.
        k: Number of eigenvalues, at most the entries n of a sample.
        which: "LM" largest modulus, "LR" largest real part.
        tol: Relative residual, by default 1e-8 in float64 and 1e-4 in float32.
        max_dimension: Cap on the Krylov dimension. Where it exceeds n, nothing can be missed; below, of a multiple
            eigenvalue a Krylov space may hold one copy only.

    Returns:
        A `Spectrum`; pairs that did not converge are there, and marked.

    Raises:
        ValueError: k or `which` out of range, an empty batch, NaN or Inf, f changes the shape.
    """
    n = _entries(y)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"k must be a whole number from 1 to the {n} entries of a sample, got {k!r}")
    if which not in ("LM", "LR"):
        raise ValueError(f"which must be 'LM' (largest modulus) or 'LR' (largest real part), got {which!r}")
    tol = _tolerance(y, tol)
    def solve(part):
        return _leading(reverse_product(f, part), part, k, which, tol, max_dimension)

    return _in_chunks(solve, y, max_dimension)


def ritz_values(f, y, dimension=40):
    """All Ritz values of one Krylov space for each sample, (B, min(dimension, n)) complex: a sketch of the whole
    spectrum.

    They lie in the numerical range; the outermost ones approximate eigenvalues, the inner ones only fill the cloud.
    """
    n = _entries(y)
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    m = min(dimension, n)
    parts = []
    for part in y.split(_rows(y, m)):
        krylov = _Krylov(reverse_product(f, part), part)
        krylov.grow(m)
        parts.append(np.linalg.eigvals(krylov.hessenberg()[:, :m]).astype(np.complex128))
    return torch.from_numpy(np.concatenate(parts))


def log_norm(f, y, tol=None, max_dimension=300):
    """(B,) logarithmic 2-norm mu_2 of each sample's Jacobian: the rightmost eigenvalue of (J + J^T)/2, on the host.

    Two solutions of y' = f(y) separate no faster than exp(t mu_2). Arguments as for `spectrum`. Lanczos values approach
    from below; a sample that does not reach `tol` raises a RuntimeWarning.

    Source: Hairer, Norsett, Wanner I (1993), I.10; Soderlind (2006), BIT 46.
    """
    def symmetric(part):
        forward, reverse = forward_product(f, part), reverse_product(f, part)
        return lambda v: (forward(v) + reverse(v)) / 2

    return _extreme(symmetric, y, "LR", tol, max_dimension)


def spectral_norm(f, y, tol=None, max_dimension=300):
    """(B,) largest singular value of each sample's Jacobian, on the host; see `log_norm`."""
    def gram(part):
        forward, reverse = forward_product(f, part), reverse_product(f, part)
        return lambda v: reverse(forward(v))

    return _extreme(gram, y, "LM", tol, max_dimension).clamp_min(0).sqrt()


def _extreme(operator, y, which, tol, max_dimension):
    _entries(y)
    tol = _tolerance(y, tol)
    found = _in_chunks(lambda part: _leading(operator(part), part, 1, which, tol, max_dimension), y, max_dimension)
    missed = int((~found.converged).sum())
    if missed:
        warnings.warn(f"{missed} of {len(y)} samples did not reach tol={tol:g} in a Krylov space of dimension "
                      f"{max_dimension} (worst residual {float(found.residuals.max()):.1e}): their values are lower "
                      "bounds", RuntimeWarning, 3)
    return found.values[:, 0].real.clone()


def _entries(y):
    _check_state(y)
    return y[0].numel()


def _tolerance(y, tol):
    tol = (1e-8 if y.dtype == torch.float64 else 1e-4) if tol is None else tol
    if not 0 < tol < 1:
        raise ValueError(f"tol must lie between 0 and 1, got {tol}")
    return tol


def _rows(y, dimension):
    return max(1, MEMORY // ((min(dimension, y[0].numel()) + 1) * y[0].numel() * y.element_size()))


def _in_chunks(solve, y, dimension):
    parts = [solve(part) for part in y.split(_rows(y, dimension))]
    fields = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "residuals", "converged"))
    return Spectrum(*fields, max(part.products for part in parts))


class _Krylov:
    """Orthonormal bases V (B, m + 1, n) and Hessenberg matrices H (B, m + 1, m) with A V_m = V_{m+1} H, growing."""

    def __init__(self, apply, y):
        self.apply, self.m, self.n = apply, 0, y[0].numel()
        # The same start for every sample: what a sample gives does not depend on its place in the batch.
        self.V = direction(self.n, 0).to(y).expand(len(y), 1, self.n).clone()
        self.H = self.V.new_zeros(len(y), 1, 0)

    def grow(self, m):
        """Extend to dimension m <= n."""
        more, old = m - self.m, self.m
        self.V = torch.cat([self.V, self.V.new_zeros(len(self.V), more, self.n)], 1)
        H = self.V.new_zeros(len(self.V), m + 1, m)
        H[:, :old + 1, :old] = self.H
        for j in range(old, m):
            w = self.apply(self.V[:, j].contiguous())
            size = w.norm(dim=1)
            w, H[:, :j + 1, j] = self._orthogonalise(w, j + 1)
            rest = w.norm(dim=1)
            if j + 1 == self.n:
                break  # the space is full: what is left is rounding
            # An invariant subspace ends the sequence, not the search: go on with a fresh direction, decoupled by a
            # zero.
            ended = rest <= 10 * torch.finfo(w.dtype).eps * size
            if bool(ended.any()):
                fresh, _ = self._orthogonalise(direction(self.n, j + 1).to(w).expand_as(w), j + 1)
                w = torch.where(ended[:, None], fresh, w)
            H[:, j + 1, j] = torch.where(ended, 0, rest)
            self.V[:, j + 1] = w / w.norm(dim=1, keepdim=True)
        self.m, self.H = m, H

    def _orthogonalise(self, w, count):
        # Twice is enough (Giraud, Langou, Rozloznik 2005); Gram-Schmidt in blocks keeps the work in matrix products.
        basis, coefficients = self.V[:, :count], 0
        for _ in range(2):
            c = w[:, None] @ basis.mT  # rows from the left: ten times faster on a CPU than columns from the right
            w = w - (c @ basis)[:, 0]
            coefficients = coefficients + c[:, 0]
        return w, coefficients

    def hessenberg(self):
        """H as a host array in float64."""
        return self.H.double().cpu().numpy()


def _leading(apply, y, k, which, tol, max_dimension):
    n, eps = y[0].numel(), torch.finfo(y.dtype).eps
    limit = min(n, max(max_dimension, k + 2))
    krylov, m = _Krylov(apply, y), min(limit, max(FIRST_DIMENSION, 4 * k))
    values, vectors = np.zeros((len(y), k), complex), np.zeros((len(y), limit, k), complex)
    scale, pending = np.zeros((len(y), k)), np.arange(len(y))
    while True:
        krylov.grow(m)
        # Dense eigenvalues cost as much as the products: only for samples that still need them.
        H = krylov.hessenberg()[pending]
        theta, S = (part.astype(complex) for part in np.linalg.eig(H[:, :m]))
        order = np.argsort(-(abs(theta) if which == "LM" else theta.real), axis=1, kind="stable")[:, :k]
        theta, S = np.take_along_axis(theta, order, 1), np.take_along_axis(S, order[:, None], 2)
        norm = np.sqrt((H**2).sum(1)).max(1)  # max ||A v_j||: a lower bound of ||A||
        size = np.maximum(abs(theta), np.maximum(10 * eps / tol * norm, np.finfo(float).tiny)[:, None])
        values[pending], vectors[pending, :m], scale[pending] = theta, S, size
        # The last row of A V = V H, applied to an eigenvector of H, is its residual.
        pending = pending[(abs(H[:, m, m - 1, None] * S[:, -1]) > tol / 2 * size).any(1)]
        if m == limit or not pending.size:
            break
        m = min(limit, m + max(8, m // 4))
    residuals, products = _residuals(apply, krylov.V[:, :m], values, vectors[:, :m])
    residuals = torch.from_numpy(residuals / scale)
    return Spectrum(torch.from_numpy(values), residuals, residuals <= tol, m + products)


def _residuals(apply, V, values, vectors):
    """||A x - lambda x|| / ||x|| of the Ritz vectors x by products with their real and imaginary parts, (B, k)."""
    result, products = np.empty(values.shape), 0
    for i in range(values.shape[1]):
        value = torch.from_numpy(values[:, i, None]).to(V.device)
        parts = [torch.from_numpy(part[:, :, i].copy()).to(V)[:, None] @ V for part in (vectors.real, vectors.imag)]
        real, imaginary = (part[:, 0] for part in parts)
        images = [apply(real), apply(imaginary) if np.any(vectors[:, :, i].imag) else torch.zeros_like(real)]
        products += 2 if np.any(vectors[:, :, i].imag) else 1
        x, image = torch.complex(real.double(), imaginary.double()), torch.complex(*(part.double() for part in images))
        result[:, i] = ((image - value * x).norm(dim=1) / x.norm(dim=1)).cpu().numpy()
    return result, products
