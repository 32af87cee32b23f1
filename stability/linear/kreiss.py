"""The Kreiss constant: how large e^{tJ} or the powers of J become before the eigenvalues have their say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from stability.errors import InputError
from stability.linear.jacobian import dense_jacobians
from stability.linear.levels import Peak, enclosed
from stability.linear.pseudospectra import Points, Smallest, resolvent_readers
from stability.types import Map, PerSample, State


@dataclass(frozen=True, eq=False)
class Kreiss:
    """Kreiss constants, one for each sample; tensors on the host.

    values: (B,), at least 1; inf where an eigenvalue lies beyond the threshold.
    points: (B,) complex, the z where the supremum is approached; that eigenvalue where it is infinite.
    bound: (B,), not below the supremum where `exact`, up to rounding, and within 1 % of `values`; inf where that is not known.
    exact: whether the matrix was formed.
    kind: what `values` are, in words.
    """

    values: PerSample
    points: Points
    bound: PerSample
    exact: bool
    kind: str


def kreiss_constant(
    f: Map,
    y: State,
    domain: str = "half-plane",
    threshold: Any = None,
    dimension: int = 100,
    dense_limit: int = 512,
) -> Kreiss:
    """The Kreiss constant of each sample's Jacobian, for the flow or for the step.

    K = sup (Re z - w) ||(z I - J)^-1|| over Re z > w ("half-plane"), or sup (|z| - w) ||(z I - J)^-1|| over |z| > w
    ("disc"). The Kreiss matrix theorem: K <= sup_t ||e^{tJ}|| e^{-wt} <= e n K, and K <= sup_k ||J^k|| / w^k <= e n K. A
    normal matrix with its spectrum within w has K = 1.

    Args:
        f, y: As for `stability.spectrum`: a field for the half-plane, a step for the disc.
        domain: "half-plane" or "disc".
        threshold: w, a number or (B,); by default 0 or 1, the question of stability. Where a field expands, its abscissa
            or more asks how much faster than exponentially a perturbation grows at first.
        dimension: Krylov dimension above `dense_limit`.
        dense_limit: Up to so many entries the matrix is formed.

    Returns:
        A `Kreiss`. The supremum is sought on a grid and improved by local searches from its best points. Up to
        `dense_limit` it is enclosed then: no peak that is more than 1 % higher is overlooked (see levels.py), down to a
        distance from the threshold, relative to the norm, of the root of the rounding unit. Beyond, a bound from below.

    Raises:
        ValueError: As for `stability.pseudospectrum`; an unknown domain, a threshold that is not finite or, for the disc,
            not positive.

    Source: Trefethen & Embree (2005), Spectra and Pseudospectra, chapter 18; Mitchell (2020), SIAM J. Sci. Comput. 42, for
    the search by optimisation.
    """
    if domain not in ("half-plane", "disc"):
        raise InputError(f"domain must be 'half-plane' or 'disc', got {domain!r}")
    disc = domain == "disc"
    threshold = torch.as_tensor(float(disc) if threshold is None else threshold, dtype=torch.float64).cpu()
    allowed = threshold.isfinite() & (threshold > (0 if disc else -torch.inf))
    if threshold.shape not in ((), (len(y),)) or not bool(allowed.all()):
        raise InputError(
            f"threshold must be finite{' and above 0' if disc else ''}, one number or one for each of the "
            f"{len(y)} samples, got {threshold.tolist()}"
        )
    readers, exact = resolvent_readers(f, y, dimension, dense_limit)
    closest = torch.finfo(y.dtype).eps ** 0.5  # distance, relative to the norm, below which rounding decides
    found = []
    for sample, (eigenvalues, norm, smallest), w in zip(y.split(1), readers, threshold.expand(len(y)).tolist()):
        J = dense_jacobians(f, sample)[0].double().cpu().numpy() if exact else None
        found.append(_constant(eigenvalues, norm, smallest, disc, w, closest, J))
    values, points, bounds = zip(*found)
    kind = (
        "dense matrix; supremum by grid and local search, enclosed by level sets"
        if exact
        else "lower bound: Arnoldi's rectangular Hessenberg matrix; supremum by grid and local search"
    )
    return Kreiss(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(points, dtype=torch.complex128),
        torch.tensor(bounds, dtype=torch.float64),
        exact,
        kind,
    )


def _constant(
    eigenvalues: np.ndarray, norm: float, smallest: Smallest, disc: bool, w: float, closest: float, J: np.ndarray | None
) -> tuple[float, complex, float]:
    """K, the z where it is taken, and a bound from above where the matrix J is given."""
    size = max(norm, abs(w)) or 1.0
    key = abs(eigenvalues) if disc else eigenvalues.real
    beyond = eigenvalues[key > w + closest * size]
    # A Ritz value need not be an eigenvalue: only where the resolvent says so too.
    beyond = beyond[smallest(beyond) <= closest * size] if len(beyond) else beyond
    if len(beyond):
        return np.inf, complex(beyond[0]), np.inf

    def at(s: Any, t: Any) -> np.ndarray:  # s: logarithm of the distance from the boundary; t: along it
        return (w + np.exp(s) * size) * np.exp(1j * t) if disc else w + np.exp(s) * size + 1j * t * size

    def gain(s: Any, t: Any) -> np.ndarray:
        return s + np.log(size) - np.log(np.maximum(smallest(at(s, t)), np.finfo(float).tiny))

    along = (abs(np.angle(eigenvalues)) if disc else abs(eigenvalues.imag) / size)[np.argsort(-key, kind="stable")]
    # Different ones: a pair, or a multiple eigenvalue, needs one line.
    along = along[np.sort(np.unique(along.round(9), return_index=True)[1])[:8]]
    s = np.linspace(np.log(closest) / 2, np.log(30), 12)[:, None]
    t = np.unique(np.concatenate([np.linspace(0, np.pi if disc else 1.5, 24), along]))
    grid = np.pad(gain(s, t), 1, constant_values=-np.inf)
    centre = grid[1:-1, 1:-1]
    peak = (centre >= grid[:-2, 1:-1]) & (centre >= grid[2:, 1:-1]) & (centre >= grid[1:-1, :-2]) & (centre >= grid[1:-1, 2:])
    starts = sorted(np.argwhere(peak), key=lambda place: -centre[tuple(place)])[:3]
    # Nearer than eigenvalues lie beyond the threshold by rounding, the distance from it means nothing. Ritz values may lie
    # anywhere.
    low, high = max(closest * size, 100 * (key.max() - w) if J is not None else 0), 1e3 * size

    def climbed(s: float, t: float) -> Peak:
        bounds = ((np.log(low / size), np.log(high / size)), (0, np.pi if disc else np.inf))
        start = [np.clip(value, *between) for value, between in zip((s, t), bounds)]
        found = minimize(
            lambda x: -float(gain(*x)),
            start,
            method="Nelder-Mead",
            bounds=bounds,
            options={"xatol": 1e-4, "fatol": 1e-9, "maxfev": 400},  # at a maximum the error is of the square of x's
        )
        return -found.fun, complex(at(*found.x))

    best = 0.0, complex(np.inf)  # the limit at infinity is 1
    best = max([best, *(climbed(s[i, 0], t[j]) for i, j in starts)], key=lambda pair: pair[0])
    bound = np.inf
    if J is not None:
        scale = 1 if disc else size

        def polish(d: float, t: float) -> Peak:
            return climbed(np.log(d / size), t / scale)

        best, bound = enclosed(J, smallest, w, disc, (low, high), along * scale, polish, best)
    return float(np.exp(best[0])), best[1], float(np.exp(bound))
