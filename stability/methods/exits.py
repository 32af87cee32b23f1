"""Where a ray from 0 leaves the stability region, proven panel by panel rather than looked for among samples.

The peaks of |R|^2 of a long Chebyshev polynomial are narrower than any sampling that would do for the others. So the ray is
cut into panels, and |R|^2 interpolated in each. Where its Chebyshev coefficients have decayed, the sum of their moduli bounds
it in all of the panel; where that bound is no proof, or they have not decayed, the panel is halved.

Source: Trefethen (2013), Approximation Theory and Approximation Practice, chapters 3, 8 and 18.
"""

import numpy as np
from numpy.polynomial.chebyshev import chebvander

from odenets.schemes import Scheme
from stability.errors import InputError

STABLE = 1e-10  # |R| <= 1 + STABLE counts as stable
NEAREST, FARTHEST = 1e-6, 1e8  # radii between which R is looked at; what is stable up to the last one always is
DEGREE = 16  # of the interpolants
MOST_PANELS = 5000  # of a ray at once: an R that is smooth takes some hundred
RESOLVED = 1e-10  # how far the coefficients of an interpolant must have decayed
QUIET = 1e-13  # how far from 1 rounding may take |R|^2
NARROWEST = 1e-13  # a panel, relative to its radius

_NODES = (1 - np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)) / 2  # on [0, 1], both ends among them
_TO_COEFFICIENTS = np.linalg.inv(chebvander(2 * _NODES - 1, DEGREE)).T
_PROVEN = (1 + 1.5 * STABLE) ** 2  # the rest is room for rounding, where |R| passes 1 + STABLE at a small angle


def modulus(scheme: Scheme, z: np.ndarray) -> np.ndarray:
    """|R(z)|, with overflow and poles as inf."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.nan_to_num(abs(scheme.amplification(z)), nan=np.inf, posinf=np.inf)


def first_exits(scheme: Scheme, directions: np.ndarray, panel: float = 1.2) -> np.ndarray:
    """The radius at which each ray from 0 leaves |R| <= 1: where |R| passes 1 on its way beyond 1 + `STABLE`.

    An R that touches 1, or exceeds it by rounding, is inside. 0 where growth begins at the origin.

    Args:
        scheme: A `Scheme`.
        directions: (n,) complex, of modulus 1.
        panel: Ratio of the ends of a panel to begin with. It is of consequence only to an R that hides between the nodes: one
            that is zero or one but for a bump, say.

    Returns:
        (n,) radii; inf where a ray stays inside.

    Raises:
        ValueError: R is too rough to tell.
    """
    radii = np.geomspace(NEAREST, FARTHEST, int(np.log(FARTHEST / NEAREST) / np.log(panel)) + 2)
    beyond = modulus(scheme, radii[:, None] * directions) > 1 + STABLE
    found = np.where(beyond.any(0), radii[beyond.argmax(0)], np.inf)
    ray, index = np.nonzero(radii[:-1] < found[:, None])
    left, right = radii[index], radii[index + 1]
    limit = max(len(ray), MOST_PANELS * len(directions))
    while len(ray):
        if len(ray) > limit:
            raise InputError(
                f"R(z) of {scheme} is too rough, or too noisy about |R| = 1, to tell where it leaves the region; "
                "it must be accurate to about 1e-12"
            )
        # In portions: a long method holds all of its stages at all of the nodes.
        parts = [
            _examine(scheme, directions, *part)
            for part in zip(*(np.array_split(v, 1 + len(ray) // 2048) for v in (ray, left, right)))
        ]
        safe, outside = (np.concatenate(part) for part in zip(*parts))
        np.minimum.at(found, ray, outside)
        # What lies behind a point outside is of no interest, nor how |R| grows beyond it.
        right = np.minimum(right, outside)
        middle, open_ = (left + right) / 2, ~safe & (right - left > NARROWEST * right)
        ray, left, right = (np.concatenate([v[open_], w[open_]]) for v, w in ((ray, ray), (left, middle), (middle, right)))
        ahead = left < found[ray]
        ray, left, right = ray[ahead], left[ahead], right[ahead]
    return _where_growth_begins(scheme, directions, found)


def _examine(
    scheme: Scheme, directions: np.ndarray, ray: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of panels: whether |R| <= 1 is proven throughout, up to STABLE, and the first node outside, inf where none is."""
    radii = left[:, None] + (right - left)[:, None] * _NODES
    growth = np.minimum(modulus(scheme, radii * directions[ray, None]), 1e3)
    beyond = growth > 1 + STABLE
    coefficients = abs(growth**2 @ _TO_COEFFICIENTS)
    # The last coefficients stand for those that were left out. However small |R| is at the nodes, they tell of a pole between.
    rest = coefficients[:, -3:].max(1)
    proven = (rest <= RESOLVED) & (coefficients.sum(1) + DEGREE * rest <= _PROVEN)
    return proven, np.where(beyond.any(1), radii[np.arange(len(radii)), beyond.argmax(1)], np.inf)


def _where_growth_begins(scheme: Scheme, directions: np.ndarray, found: np.ndarray) -> np.ndarray:
    """From the radius at which |R| exceeds 1 + STABLE back to where it passed 1.

    Beside the imaginary axis the two lie far apart: |R| = 1 + c r^p needs a while to show, and no step at all is stable there.
    """
    leaving = np.isfinite(found)
    directions, end = directions[leaving], found[leaving]
    shares = np.concatenate([1 - 2.0 ** np.arange(-40, -1), 2.0 ** np.arange(-1, -60, -1)])[:, None]
    growth = modulus(scheme, shares * end * directions) ** 2
    # Inside is where |R| is smaller than 1, or still 1 so near to the end that no power of r leads from there to STABLE.
    inside = (growth < 1 - QUIET) | (shares > 0.7) & (growth <= 1 + QUIET)
    low = np.where(inside.any(0), shares[inside.argmax(0), 0] * end, 0.0)
    high = np.where(low > 0, end, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        within = modulus(scheme, middle * directions) <= 1
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    radii = found.copy()
    radii[leaving] = low
    return radii
