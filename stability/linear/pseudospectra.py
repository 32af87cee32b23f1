"""Pseudospectra of Jacobians: the norm of the resolvent, where eigenvalues of a non-normal matrix mislead.

Up to `dense_limit` entries the matrix is formed, and figures are exact up to rounding. Beyond, they come from the
rectangular Hessenberg matrix of Arnoldi, (z I - J^T) V_m = V_{m+1} (z E - H): the smallest singular value of z E - H is
that of z I - J^T on a subspace, hence never less than the true one. Sources: Trefethen & Embree (2005), Spectra and
Pseudospectra; Toh & Trefethen (1996), SIAM J. Sci. Comput. 17.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.linalg import schur
from torch import Tensor

from stability.errors import InputError
from stability.krylov import Krylov
from stability.linear.jacobian import dense_jacobians
from stability.linear.spectra import entries, hessenbergs
from stability.random import direction
from stability.scaling import power_of_two
from stability.types import Map, Product, Rows, State

Points = Complex[Tensor, "batch *points"]
Values = Float[Tensor, "batch *points"]
Smallest = Callable[[Any], np.ndarray]  # an array of z -> the smallest singular values of z I - J
Reader = tuple[np.ndarray, float, Smallest]  # eigenvalues (m,) or Ritz values, the norm, and that

BLOCK = 2**20  # entries of matrices held at once while a grid is worked through
STEPS, CLOSE = 40, 1e-8  # of inverse Lanczos: how many at most, and the relative residual that ends it


@dataclass(frozen=True, eq=False)
class Pseudospectrum:
    """The smallest singular value of z I - J at points z, for each sample; tensors on the host.

    points: (B, *S) complex.
    smallest: (B, *S): its reciprocal is the norm of the resolvent; where it is below eps, an eigenvalue of some matrix
        within eps of J.
    eigenvalues: (B, m) complex, all of them where `exact`, else the Ritz values of the Krylov space.
    exact: whether the matrix was formed.
    kind: what `smallest` is, in words.
    """

    points: Points
    smallest: Values
    eigenvalues: Complex[Tensor, "batch m"]
    exact: bool
    kind: str


def pseudospectrum(
    f: Map, y: State, points: Any = None, *, resolution: int = 40, dimension: int = 100, dense_limit: int = 512
) -> Pseudospectrum:
    """The smallest singular value of z I - J on a grid, for each sample.

    Args:
        f, y: As for `stability.spectrum`.
        points: Complex tensor or array of any shape S, the z of all samples; by default S = (resolution, resolution),
            imaginary by real part, for each sample its own grid round its spectrum.
        resolution: Points along each side of the default grid.
        dimension: Krylov dimension above `dense_limit`; a larger one gives sharper bounds.
        dense_limit: Up to so many entries the matrix is formed and the result exact.

    Returns:
        A `Pseudospectrum`.

    Raises:
        ValueError: An empty batch, NaN or Inf in y, in f(y) or in points; an argument out of range.
    """
    if points is not None:
        points = np.asarray(points, complex)
        if not points.size or not np.isfinite(points).all():
            raise InputError(f"points must be finite complex numbers, at least one, got shape {points.shape}")
    elif isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 2:
        raise InputError(f"resolution must be a whole number of at least 2, got {resolution!r}")
    readers, exact = resolvent_readers(f, y, dimension, dense_limit)
    found = []
    for spectrum, _, smallest in readers:
        z = _grid(spectrum, resolution) if points is None else points
        found.append([torch.from_numpy(np.asarray(part)) for part in (z, smallest(z), spectrum)])
    kind = "exact: dense matrix" if exact else "upper bound: Arnoldi's rectangular Hessenberg matrix"
    at, values, eigenvalues = (torch.stack(part) for part in zip(*found))
    return Pseudospectrum(at, values, eigenvalues, exact, kind)


def _grid(eigenvalues: np.ndarray, resolution: int) -> np.ndarray:
    real, height = eigenvalues.real, abs(eigenvalues.imag).max()
    margin = 0.5 * max(np.ptp(real), 2 * height) or 0.5 * abs(eigenvalues).max() or 1.0
    x = np.linspace(real.min() - margin, real.max() + margin, resolution)
    return x + 1j * np.linspace(-height - margin, height + margin, resolution)[:, None]


def resolvent_readers(f: Map, y: State, dimension: int, dense_limit: int) -> tuple[Iterator[Reader], bool]:
    """Yield for each sample its eigenvalues (m,) or Ritz values, its norm, and a function from an array of z to the
    smallest singular values of z I - J; and say whether they are exact."""
    exact = entries(y) <= dense_limit
    return (_dense(f, y) if exact else _krylov(f, y, dimension)), exact


def _dense(f: Map, y: State) -> Iterator[Reader]:
    for sample in y.split(1):
        J = dense_jacobians(f, sample)[0].double()
        unit = float(power_of_two(J[None]))
        T, _ = schur((J / unit).cpu().numpy(), output="complex")
        smallest = _by_pairs(_triangular, torch.from_numpy(T).to(y.device), unit)
        yield np.diag(T) * unit, float(torch.linalg.matrix_norm(J / unit, 2)) * unit, smallest


def _krylov(f: Map, y: State, dimension: int) -> Iterator[Reader]:
    for part in hessenbergs(f, y, dimension):
        for H in part:
            unit = float(power_of_two(torch.from_numpy(H)[None]))
            eigenvalues = np.linalg.eigvals(H[: H.shape[1]] / unit).astype(complex) * unit
            smallest = _by_pairs(_singular, torch.from_numpy(H / unit).to(y.device), unit)
            yield eigenvalues, float(np.linalg.norm(H / unit, 2)) * unit, smallest


def _by_pairs(smallest: Callable[[Tensor, Tensor], Tensor], A: Tensor, unit: float) -> Smallest:
    """`smallest` of A unit at an array of z, once for each conjugate pair: A comes of a real matrix."""

    def at(z: Any) -> np.ndarray:
        z = np.asarray(z) / unit
        half, place = np.unique(np.real(z) + 1j * abs(np.imag(z)), return_inverse=True)
        chunks = torch.from_numpy(half).to(A.device).split(max(1, BLOCK // A.numel()))
        return torch.cat([smallest(A, chunk) for chunk in chunks]).cpu().numpy()[place].reshape(np.shape(z)) * unit

    return at


def _singular(A: Tensor, z: Tensor) -> Tensor:
    """Smallest singular value of z E - A (P,), E the identity with as many rows as A, which may have one more."""
    E = torch.eye(*A.shape, dtype=torch.complex128, device=A.device)
    return torch.linalg.svdvals(z[:, None, None] * E - A)[:, -1]


def _triangular(T: Tensor, z: Tensor) -> Tensor:
    """`_singular` of an upper triangular T by inverse Lanczos: the largest eigenvalue of (R* R)^-1, R = z I - T."""
    R = (-T).repeat(len(z), 1, 1)
    R.diagonal(dim1=1, dim2=2).add_(z[:, None])
    m = min(len(T), STEPS)
    krylov = Krylov(_inverse_gram(R), direction(len(T), 0).to(T).expand(len(z), -1), m, again=True)
    result = torch.full(z.shape, torch.nan, dtype=torch.float64, device=z.device)
    pending = torch.arange(len(z), device=z.device)
    while krylov.m < m:
        krylov.step()
        H = krylov.hessenberg()
        # An eigenvalue at z, or one so near that the solve overflows, is left to the dense values below.
        usable = torch.isfinite(H).flatten(1).all(1)
        theta, S = torch.linalg.eigh(torch.where(usable[:, None, None], H[:, :-1], 0))
        rest = H[:, -1, -1].abs()
        done = usable & ((rest * S[:, -1, -1].abs() <= CLOSE * theta[:, -1]) | (krylov.m == len(T)))
        result[pending[done]] = theta[done, -1].rsqrt()
        keep = usable & ~done
        if not bool(keep.any()):
            break
        if 2 * int(keep.sum()) <= len(keep):  # R is large: better to carry some points on than to copy it at every step
            R, pending = R[keep], pending[keep]
            krylov.select(keep.nonzero()[:, 0], _inverse_gram(R))
    missed = torch.isnan(result)
    if bool(missed.any()):
        result[missed] = _singular(T, z[missed])
    return result


def _inverse_gram(R: Tensor) -> Product:
    """v -> (R* R)^-1 v for upper triangular R (P, n, n)."""

    def apply(v: Rows) -> Rows:
        # Solved as rows from the right, R is not copied for its conjugate transpose.
        w = torch.linalg.solve_triangular(R, v[:, None].conj(), upper=True, left=False).mH
        return torch.linalg.solve_triangular(R, w, upper=True)[..., 0]

    return apply
