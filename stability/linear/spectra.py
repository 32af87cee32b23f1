"""Eigenvalues, log-norm and norm of Jacobians, one for each sample, from products alone.

Eigenvalues are taken of J^T, which has those of J: a product is then one backward pass, three times cheaper than a
forward-mode one, and possible through every stage. How they are found: `stability.eigenpairs`.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from stability.errors import InputError
from stability.linear.arnoldi import MEMORY, grow, hessenberg, krylov_memory, krylov_process, unit_of
from stability.linear.eigenpairs import MAX_PRODUCTS, Search, Spectrum, leading
from stability.linear.jacobian import check_state, linearised, reverse_product
from stability.random import direction
from stability.scaling import power_of_two
from stability.types import Indices, Map, Operators, PerSample, Product, State

Units = Float[Tensor, "batch 1"]


def spectrum(
    f: Map,
    y: State,
    k: int = 6,
    which: str = "LM",
    *,
    tol: float | None = None,
    dimension: int | None = None,
    max_products: int = MAX_PRODUCTS,
    memory: int = MEMORY,
) -> Spectrum:
    """The k eigenvalues of largest modulus, or the k rightmost ones, of each sample's Jacobian.

    Args:
        f: (B, ...) -> (B, ...), each sample on its own; a module or an `ODEStage` too (with its gradient "exact").
        y: States (B, ...), float32 or float64, on any device.
        k: Number of eigenvalues, at most the entries n of a sample.
        which: "LM" largest modulus, "LR" largest real part.
        tol: Relative residual, by default 1e-8 in float64 and 1e-4 in float32.
        dimension: Basis vectors held for each sample; by default n up to 160, where nothing can be missed, else enough for
            speed. A Krylov space holds one copy of a multiple eigenvalue: where it is smaller than n and k > 1, others are
            sought in the complement of what was found, from a new start, until none is wanted more.
        max_products: Products with J^T after which a sample is given up, and marked.
        memory: Bytes of basis vectors held at once; see `stability.krylov_memory`.

    Returns:
        A `Spectrum`; pairs that did not converge are there, and marked.

    Raises:
        ValueError: k or `which` out of range, an empty batch, NaN or Inf, f changes the shape or the dtype.
    """
    n = entries(y)
    check_count(k, n)
    if which not in ("LM", "LR"):
        raise InputError(f"which must be 'LM' (largest modulus) or 'LR' (largest real part), got {which!r}")
    search = Search(k, which, tolerance(y, tol), dimension, max_products, memory)
    return leading(lambda rows: reverse_product(f, y[rows]), y, len(y), n, search)


def ritz_values(f: Map, y: State, dimension: int = 40) -> Complex[Tensor, "batch m"]:
    """All Ritz values of one Krylov space for each sample, (B, min(dimension, n)) complex: a sketch of the whole
    spectrum.

    They lie in the numerical range; the outermost ones approximate eigenvalues, the inner ones only fill the cloud.
    """
    m = min(dimension, entries(y))
    return torch.from_numpy(
        np.concatenate([np.linalg.eigvals(H[:, :m]) for H in hessenbergs(f, y, dimension)]).astype(np.complex128)
    )


def hessenbergs(f: Map, y: State, dimension: int) -> Iterator[np.ndarray]:
    """Yield, chunk by chunk, the matrices H (b, m + 1, m) of Arnoldi on J^T, m = min(dimension, n), in float64."""
    n = entries(y)
    if dimension < 1:
        raise InputError(f"dimension must be at least 1, got {dimension}")
    m = min(dimension, n)
    for part in y.split(krylov_memory(y, 0, m).chunk):
        krylov = krylov_process(reverse_product(f, part), y, len(part), n, m)
        grow(krylov, m)
        yield hessenberg(krylov) * unit_of(krylov)[:, :, None].double().cpu().numpy()


def log_norm(
    f: Map, y: State, *, tol: float | None = None, dimension: int | None = None, max_products: int = MAX_PRODUCTS
) -> PerSample:
    """(B,) logarithmic 2-norm mu_2 of each sample's Jacobian: the rightmost eigenvalue of (J + J^T)/2, on the host.

    Two solutions of y' = f(y) separate no faster than exp(t mu_2). Arguments as for `spectrum`, but tol is relative to
    the norm of (J + J^T)/2, for mu_2 may be zero. Lanczos values approach from below; a sample that does not reach it
    raises a RuntimeWarning.

    Source: Hairer, Norsett, Wanner I (1993), I.10; Soderlind (2006), BIT 46.
    """

    def symmetric(rows: Indices) -> Product:
        at = linearised(f, y[rows], accurate)
        return lambda v: (at.forward(v) + at.reverse(v)) / 2

    accurate = _unseen(y, tol)
    return _extreme(symmetric, y, "LR", tol, dimension, max_products)


def spectral_norm(
    f: Map, y: State, *, tol: float | None = None, dimension: int | None = None, max_products: int = MAX_PRODUCTS
) -> PerSample:
    """(B,) largest singular value of each sample's Jacobian, on the host; see `log_norm`.

    An upper bound comes with `stability.singular_values`.
    """
    gram, units = gram_operator(f, y, _unseen(y, tol)), torch.ones(len(y), 1).to(y)
    values = _extreme(partial(gram, units), y, "LM", tol, dimension, max_products)
    return values.clamp_min(0).sqrt() * units[:, 0].double().cpu()


def gram_operator(f: Map, y: State, accurate: float = 0.0) -> Callable[[Units, Indices], Product]:
    """Units (B, 1), indices of samples -> v -> (J / unit)^T (J / unit) v; `accurate`: see `linearised`.

    The square of J would leave the range of the dtype where J does not. The unit of a sample is set where its operator is
    first asked for: a power of two, from a product.
    """
    known = torch.zeros(len(y), dtype=torch.bool)

    def gram(units: Units, rows: Indices) -> Product:
        at = linearised(f, y[rows], accurate)
        if not bool(known[rows.cpu()].all()):
            v = direction(y[0].numel(), 0).to(y).expand(len(rows), -1).contiguous()
            units[rows], known[rows.cpu()] = power_of_two(at.forward(v)), True
        unit = units[rows]
        return lambda v: at.reverse(at.forward(v) / unit) / unit

    return gram


def _unseen(y: State, tol: float | None) -> float:
    """How far apart products with J and J^T may be where a search is for `tol`."""
    return tolerance(y, tol) / 100


def _extreme(
    operator: Operators, y: State, which: str, tol: float | None, dimension: int | None, max_products: int
) -> PerSample:
    n, tol = entries(y), tolerance(y, tol)
    found = leading(operator, y, len(y), n, Search(1, which, tol, dimension, max_products, symmetric=True))
    missed = int((~found.converged).sum())
    if missed:
        warnings.warn(
            f"{missed} of {len(y)} samples did not reach tol={tol:g} within {max_products} products (worst "
            f"residual {float(found.residuals.max()):.1e}): their values are lower bounds",
            RuntimeWarning,
            3,
        )
    return found.values[:, 0].real.clone()


def entries(y: State) -> int:
    """n, the entries of a sample, of a state that is fit for analysis; else ValueError."""
    check_state(y)
    return y[0].numel()


def check_count(k: object, n: int) -> None:
    """ValueError unless k is a whole number from 1 to n."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise InputError(f"k must be a whole number from 1 to the {n} entries of a sample, got {k!r}")


def tolerance(y: Tensor, tol: float | None) -> float:
    """The relative residual to reach: tol, or by default what the dtype allows."""
    check_state(y)
    tol = (1e-8 if y.dtype == torch.float64 else 1e-4) if tol is None else tol
    if not 0 < tol < 1:
        raise InputError(f"tol must lie between 0 and 1, got {tol}")
    return tol
