"""The numerical range (field of values) of Jacobians: where Rayleigh quotients lie, eigenvalues among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from stability.errors import InputError
from stability.linear.arnoldi import MEMORY
from stability.linear.eigenpairs import MAX_PRODUCTS, Search, leading
from stability.linear.jacobian import dense_jacobians, linearised, repeated
from stability.linear.spectra import entries, tolerance
from stability.types import Indices, Map, Product, Rows, State

Angles = Float[Tensor, "angles"]


@dataclass(frozen=True, eq=False)
class NumericalRange:
    """W(J) = {x* J x: ||x|| = 1} of each sample, a convex set that holds the spectrum; tensors on the host.

    angles: (A,), directions of the outward normals.
    points: (B, A) complex, points of W(J), on its boundary once converged (anywhere on the edge where that is flat): their
        polygon lies inside W(J).
    support: (B, A), max Re(e^{-i angle} w) over W(J) as found: from below. At angle 0 it is the log-norm mu_2.
    outer: (B, A), support plus residual: the half-planes Re(e^{-i angle} w) <= outer enclose W(J), unless Lanczos missed
        an eigenvalue further out altogether.
    converged: (B, A) bool.
    exact: whether the matrix was formed, so that support and outer agree up to rounding.
    kind: what the figures are, in words.
    """

    angles: Angles
    points: Complex[Tensor, "batch angles"]
    support: Float[Tensor, "batch angles"]
    outer: Float[Tensor, "batch angles"]
    converged: Bool[Tensor, "batch angles"]
    exact: bool
    kind: str


def numerical_range(
    f: Map,
    y: State,
    angles: int | Sequence[float] | np.ndarray = 32,
    *,
    tol: float | None = None,
    dense_limit: int = 512,
    dimension: int | None = None,
    max_products: int = MAX_PRODUCTS,
    memory: int = MEMORY,
) -> NumericalRange:
    """Boundary and support of the numerical range of each sample's Jacobian.

    For each angle the largest eigenvalue of the Hermitian part of e^{-i angle} J is the support, and the Rayleigh
    quotient of its eigenvector a boundary point. The range of a real matrix mirrors itself in the real axis: half the
    angles are computed.

    Args:
        f, y: As for `stability.spectrum`; f has to allow forward mode above `dense_limit`.
        angles: How many, evenly spaced from 0, or the angles themselves.
        tol: Residual relative to the norm of the Hermitian part, by default 1e-6 in float64 and 1e-4 in float32; the
            support errs by about its square.
        dense_limit: Up to so many entries the matrix is formed and the result exact.
        dimension, max_products, memory: As for `stability.spectrum`; an angle counts as a sample of 2n entries.

    Returns:
        A `NumericalRange`.

    Raises:
        ValueError: As for `stability.spectrum`; no or non-finite angles.

    Source: Johnson (1978), SIAM J. Numer. Anal. 15.
    """
    n = entries(y)
    tol = tolerance(y, (1e-6 if y.dtype == torch.float64 else 1e-4) if tol is None else tol)
    directions = _angles(angles)
    wrapped = np.arctan2(np.sin(directions), np.cos(directions))
    half, place = np.unique(abs(wrapped).round(14), return_inverse=True)
    exact = n <= dense_limit
    search = Search(1, "LR", tol, dimension, max_products, memory, symmetric=True, vectors=True)
    found = [_dense(f, sample, half) if exact else _lanczos(f, sample, half, search) for sample in y.split(1)]
    points, support, outer, converged = (torch.stack(part)[:, place] for part in zip(*found))
    points = torch.where(torch.from_numpy(wrapped < 0), points.conj(), points)
    kind = (
        "exact: dense matrix"
        if exact
        else "points and support from within; outer by residuals, unless Lanczos missed an eigenvalue"
    )
    return NumericalRange(torch.from_numpy(directions), points, support, outer, converged, exact, kind)


def _angles(wanted: object) -> np.ndarray:
    if isinstance(wanted, int) and wanted > 0:
        return 2 * math.pi * np.arange(wanted) / wanted
    angles = np.asarray(wanted)
    if angles.ndim != 1 or not angles.size or angles.dtype.kind not in "fiu" or not np.isfinite(angles).all():
        raise InputError(f"angles must be how many, at least 1, or a list of finite numbers, got {wanted!r}")
    return angles.astype(float)


def _dense(f: Map, y: State, angles: np.ndarray) -> tuple[Tensor, ...]:
    J = dense_jacobians(f, y)[0].to(torch.complex128)
    points, support = [], []
    for angle in angles:
        turned = complex(np.exp(-1j * angle)) * J
        values, vectors = torch.linalg.eigh((turned + turned.mH) / 2)
        x = vectors[:, -1]
        points.append((x.conj() @ (J @ x)).cpu())
        support.append(values[-1].cpu())
    edge = torch.stack(support)
    return torch.stack(points), edge, edge, torch.ones(len(angles), dtype=torch.bool)


def _lanczos(f: Map, y: State, angles: np.ndarray, search: Search) -> tuple[Tensor, ...]:
    n, turns = y.numel(), torch.from_numpy(angles).to(y)

    def operator(rows: Indices) -> Product:
        """Of a + ib, stored as (a, b): the Hermitian part of e^{-i angle} J is cos H - i sin S, J = H + S."""
        c, s = turns[rows].cos()[:, None], turns[rows].sin()[:, None]
        at = linearised(f, repeated(y, 2 * len(rows)))

        def apply(v: Rows) -> Rows:
            v = torch.cat(v.split(n, 1))
            up, down = at.forward(v), at.reverse(v)
            (Ha, Hb), (Sa, Sb) = ((up + down) / 2).chunk(2), ((up - down) / 2).chunk(2)
            return torch.cat([c * Ha + s * Sb, c * Hb - s * Sa], 1)

        return apply

    found = leading(operator, y, len(angles), 2 * n, search)
    assert found.vectors is not None  # the search asks for them
    support, parts = found.values[:, 0].real, found.vectors[:, 0].real.double().split(n, 1)
    # One product more gives the quotient itself: J x for both parts of every eigenvector.
    images = linearised(f, repeated(y, 2 * len(angles))).forward(torch.cat(parts).to(y)).double().chunk(2)
    x, image = torch.complex(*parts), torch.complex(*images)
    points = (torch.linalg.vecdot(x, image) / torch.linalg.vecdot(x, x)).cpu()
    # Of the unit vector, in the units of J: the residual is relative to the norm.
    residual = found.residuals[:, 0] * found.scale[:, 0]
    return points, support, support + residual, found.converged[:, 0]
