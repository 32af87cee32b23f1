"""The Kreiss constant: how large e^{tJ} or the powers of J become before the eigenvalues have their say."""
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from stability.errors import InputError
from stability.linear.pseudospectra import resolvent_readers


@dataclass(frozen=True, eq=False)
class Kreiss:
    """Kreiss constants, one for each sample; tensors on the host.

    values: (B,), at least 1; inf where an eigenvalue lies beyond the threshold.
    points: (B,) complex, the z where the supremum is approached; that eigenvalue where it is infinite.
    exact: whether the matrix was formed.
    kind: what `values` are, in words.
    """

    values: torch.Tensor
    points: torch.Tensor
    exact: bool
    kind: str


def kreiss_constant(f, y, domain="half-plane", threshold=None, dimension=100, dense_limit=512):
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
        A `Kreiss`. The supremum is sought on a grid and improved by local searches from its best points; a bound from
        below in any case, to which Arnoldi's matrix adds its own above `dense_limit`.

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
        raise InputError(f"threshold must be finite{' and above 0' if disc else ''}, one number or one for each of the "
                         f"{len(y)} samples, got {threshold.tolist()}")
    readers, exact = resolvent_readers(f, y, dimension, dense_limit)
    closest = torch.finfo(y.dtype).eps ** 0.5  # distance, relative to the norm, below which rounding decides
    found = [_constant(*reader, disc, w, closest) for reader, w in zip(readers, threshold.expand(len(y)).tolist())]
    values, points = zip(*found)
    kind = ("dense matrix; supremum by grid and local search" if exact else
            "lower bound: Arnoldi's rectangular Hessenberg matrix; supremum by grid and local search")
    return Kreiss(torch.tensor(values, dtype=torch.float64), torch.tensor(points, dtype=torch.complex128), exact, kind)


def _constant(eigenvalues, norm, smallest, disc, w, closest):
    """K and the z where it is taken."""
    size = max(norm, abs(w)) or 1.0
    key = abs(eigenvalues) if disc else eigenvalues.real
    beyond = eigenvalues[key > w + closest * size]
    # A Ritz value need not be an eigenvalue: only where the resolvent says so too.
    beyond = beyond[smallest(beyond) <= closest * size] if len(beyond) else beyond
    if len(beyond):
        return np.inf, complex(beyond[0])

    def at(s, t):  # s: logarithm of the distance from the boundary; t: along it
        return (w + np.exp(s) * size) * np.exp(1j * t) if disc else w + np.exp(s) * size + 1j * t * size

    def gain(s, t):
        return s + np.log(size) - np.log(np.maximum(smallest(at(s, t)), np.finfo(float).tiny))

    nearest = eigenvalues[np.argsort(-key)[:8]]
    along = abs(np.angle(nearest)) if disc else abs(nearest.imag) / size
    s = np.linspace(np.log(closest) / 2, np.log(30), 16)[:, None]
    t = np.unique(np.concatenate([np.linspace(0, np.pi if disc else 1.5, 24), along]))
    grid = np.pad(gain(s, t), 1, constant_values=-np.inf)
    centre = grid[1:-1, 1:-1]
    peak = (centre >= grid[:-2, 1:-1]) & (centre >= grid[2:, 1:-1]) & (centre >= grid[1:-1, :-2]) & (centre >= grid[1:-1, 2:])
    starts = sorted(np.argwhere(peak), key=lambda place: -centre[tuple(place)])[:3]
    best, z = 0.0, complex(np.inf)  # the limit at infinity is 1
    for i, j in starts:
        found = minimize(lambda x: -float(gain(*x)), (s[i, 0], t[j]), method="Nelder-Mead",
                         bounds=((np.log(closest), np.log(1e3)), (0, np.pi if disc else np.inf)),
                         options={"xatol": 1e-7, "fatol": 1e-12, "maxfev": 400})
        if -found.fun > best:
            best, z = -found.fun, at(*found.x)
    return float(np.exp(best)), complex(z)
