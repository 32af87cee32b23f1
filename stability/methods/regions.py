"""Linear stability of a scheme, read from its R(z): region, intervals, A- and L-stability, the largest step.

Whatever has an R(z) is served, so nothing here relies on R being analytic: the conjugate in the paper's ie_skip makes
|R| larger inside the left half-plane than on its edge, and all of the half-plane is sampled. A tableau, where there is
one, adds what A and b alone decide: the SSP coefficient, algebraic stability.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from odenets.schemes import Scheme, get_scheme
from stability.errors import InputError
from stability.methods.contractivity import is_algebraically_stable, ssp_coefficient

STABLE = 1e-10  # |R| <= 1 + STABLE counts as stable
NEAREST, FARTHEST = 1e-6, 1e8  # radii between which R is sampled; what is stable up to the last one always is


@dataclass(frozen=True, eq=False)
class Region:
    """What linear stability analysis says of a scheme.

    real_interval: largest b with |R| <= 1 on [-b, 0]; inf where it never ends.
    imaginary_interval: largest b with |R| <= 1 on [-ib, ib]; 0 where growth begins at once, inf where it never ends.
    a_stable: |R| <= 1 in the closed left half-plane. l_stable: A-stable, and R -> 0 at infinity.
    a_alpha: the largest angle, in degrees, such that |R| <= 1 in the sector |arg(-z)| <= a_alpha; 90 where A-stable, 0
        where no sector fits. Rays one degree apart are looked at: a narrower lobe may escape.
    ssp: SSP coefficient, the radius of absolute monotonicity. algebraically_stable: b >= 0 and diag(b) A + A^T diag(b)
        - b b^T positive semi-definite. Both None for a scheme without a tableau.
    window: (left, right, bottom, top) of the grid; resolution: its points along the longer side.
    """

    scheme: Scheme
    real_interval: float
    imaginary_interval: float
    a_stable: bool
    l_stable: bool
    a_alpha: float
    ssp: float | None
    algebraically_stable: bool | None
    window: tuple
    resolution: int

    @cached_property
    def grid(self):
        """(x, y, |R|) of shapes (columns,), (rows,), (rows, columns), ready for contour plots."""
        left, right, bottom, top = self.window
        spacing = max(right - left, top - bottom) / (self.resolution - 1)
        x = np.linspace(left, right, max(2, round((right - left) / spacing) + 1))
        y = np.linspace(bottom, top, max(2, round((top - bottom) / spacing) + 1))
        return x, y, _modulus(self.scheme, x + 1j * y[:, None])


def region(scheme, window=None, resolution=401):
    """Stability region and what follows from it.

    Args:
        scheme: A spec ("rk4", "ie_skip(gamma=0.05)") or a `Scheme`.
        window: (left, right, bottom, top) of the grid; None frames the stable set, or [-8, 8]^2 where that is
            unbounded.
        resolution: Points along the grid's longer side.

    Returns:
        A `Region`.

    Raises:
        ValueError: The scheme is unknown or has no R(z), the window is empty, or the resolution below 2.

    Source: Hairer & Wanner II (1996), IV.2, IV.3, IV.12; Kraaijevanger (1991), BIT 31.
    """
    scheme = get_scheme(scheme)
    if resolution < 2:
        raise InputError(f"resolution must be at least 2, got {resolution}")
    if window is not None:
        window = tuple(float(edge) for edge in window)
        if len(window) != 4 or not (window[0] < window[1] and window[2] < window[3]) or not np.isfinite(window).all():
            raise InputError(f"window must be (left, right, bottom, top), left < right and bottom < top, got {window}")
    real = float(_exits(scheme, np.array([-1.0]), ratio=1.0005)[0])
    a_stable = real == np.inf and _is_a_stable(scheme)
    return Region(scheme, real, np.inf if a_stable else _imaginary_interval(scheme), a_stable,
                  a_stable and _vanishes_at_infinity(scheme), _sector(scheme, real, a_stable),
                  scheme.tableau and ssp_coefficient(scheme.tableau.A, scheme.tableau.b),
                  scheme.tableau and is_algebraically_stable(scheme.tableau.A, scheme.tableau.b),
                  window or _window(scheme), resolution)


@dataclass(frozen=True, eq=False)
class StableStep:
    """How a scheme treats a cloud of eigenvalues lambda of a field.

    step: sup{H: |R(h lambda)| <= 1 for all 0 < h <= H} over the contracting ones (Re < 0); inf if nothing bounds it.
    limiting: the eigenvalue that bounds it, None if none does.
    amplification: max |R(h lambda)| over the whole cloud at h = step_size.
    expanding_share, max_real: share of eigenvalues with Re > 0, where every consistent scheme grows, and max Re lambda.
    growth_ratio: (expanding,) |R(z)| / |exp(z)| of these at z = step_size * lambda: 1 where the scheme grows as the
        flow does.
    """

    step: float
    limiting: complex | None
    amplification: float
    expanding_share: float
    max_real: float
    growth_ratio: np.ndarray


def largest_stable_step(scheme, eigenvalues, step_size=1.0):
    """The largest step at which a scheme keeps all contracting modes from growing, and what becomes of the others.

    Args:
        scheme: A spec or a `Scheme`.
        eigenvalues: Complex array of any shape, eigenvalues of the Jacobian of the field (not multiplied by h).
        step_size: h at which `amplification` and `growth_ratio` are reported.

    Returns:
        A `StableStep`. For ie_skip the answer holds for normal Jacobians only: its step is no function of the Jacobian
        alone.

    Raises:
        ValueError: No eigenvalues, one that is not finite, a step size <= 0, or a scheme without R(z).
    """
    scheme = get_scheme(scheme)
    eigenvalues = np.asarray(eigenvalues, dtype=np.complex128).ravel()
    if not eigenvalues.size or not np.isfinite(eigenvalues).all():
        raise InputError(f"eigenvalues must be finite and at least one, got {eigenvalues}")
    if not 0 < step_size < np.inf:
        raise InputError(f"step_size must be positive and finite, got {step_size}")
    contracting, expanding = eigenvalues[eigenvalues.real < 0], eigenvalues[eigenvalues.real > 0]
    # In portions: each ray takes some thousand samples.
    portions = np.array_split(contracting, 1 + contracting.size // 128)
    steps = np.concatenate([_exits(scheme, part / abs(part), ratio=1.01) / abs(part) for part in portions])
    step = steps.min(initial=np.inf)
    return StableStep(float(step), complex(contracting[steps.argmin()]) if step < np.inf else None,
                      float(_modulus(scheme, step_size * eigenvalues).max()),
                      expanding.size / eigenvalues.size, float(eigenvalues.real.max()),
                      _modulus(scheme, step_size * expanding) / np.exp(step_size * expanding.real))


def _modulus(scheme, z):
    """|R(z)|, with overflow and poles as inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(abs(scheme.amplification(z)), nan=np.inf, posinf=np.inf)


def _exits(scheme, directions, ratio, tolerance=STABLE):
    """First radius at which each ray from 0 leaves |R| <= 1 + tolerance; inf where it stays inside.

    Geometric samples find the first unstable one, bisection the edge. Directions (n,), moduli 1, to radii (n,).
    """
    radii = np.geomspace(NEAREST, FARTHEST, int(np.log(FARTHEST / NEAREST) / np.log(ratio)) + 2)
    modulus = _modulus(scheme, radii[:, None] * directions)
    outside = modulus > 1 + tolerance
    # |R| may rise above 1 and fall again between two samples: look closer at the maxima that come near.
    rise = np.diff(np.minimum(modulus, 1e300), axis=0)
    # The margin keeps out the maxima that rounding makes where |R| = 1.
    peaks = (modulus[1:-1] > 1 - 1e-2) & (rise[:-1] > 1e-12) & (rise[1:] < -1e-12)
    first = np.where(outside.any(0), outside.argmax(0), len(radii))
    low, high = radii[np.maximum(first, 1) - 1] * (first > 0), radii[np.minimum(first, len(radii) - 1)]
    for peak, ray in np.argwhere(peaks & (np.arange(1, len(radii) - 1)[:, None] < first)):
        fine = np.linspace(radii[peak], radii[peak + 2], 101)
        above = _modulus(scheme, fine * directions[ray]) > 1 + tolerance
        if above.any() and fine[above.argmax()] < high[ray]:
            low[ray], high[ray], first[ray] = fine[max(above.argmax(), 1) - 1], fine[above.argmax()], 0
    for _ in range(60):
        middle = (low + high) / 2
        inside = _modulus(scheme, middle * directions) <= 1 + tolerance
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(first < len(radii), low, np.inf)


def _imaginary_interval(scheme):
    # |R(iy)| = 1 + c y^p with c > 0 grows from the origin on, yet stays below 1 + tolerance for a while. Such a false
    # end shrinks with the tolerance (by 1000^(1/p)), a true one does not.
    end, strict = (float(_exits(scheme, np.array([1j]), 1.0005, tolerance)[0]) for tolerance in (STABLE, STABLE / 1000))
    return 0.0 if strict < 0.7 * end else end


def _is_a_stable(scheme):
    radii = np.geomspace(NEAREST, FARTHEST, 1500)[:, None]
    # Denser towards the axis, where an analytic R has its maximum; pi/2 and pi included.
    angles = np.pi / 2 * (1 + np.linspace(0, 1, 121) ** 3)
    z = radii * np.where(angles == np.pi / 2, 1j, np.exp(1j * angles))
    return bool((_modulus(scheme, z) <= 1 + STABLE).all())


def _vanishes_at_infinity(scheme):
    # Its size alone would not tell R(infinity) = 1e-3 from a slow decay: the roots of BDF2 go as |z|^(-1/2).
    directions = np.exp(1j * np.linspace(np.pi / 2, np.pi, 31))
    far, near = (_modulus(scheme, radius * directions) for radius in (FARTHEST, FARTHEST / 100))
    return bool(((far < 1e-2) & (far <= 0.2 * near)).all())


def _sector(scheme, real_interval, a_stable):
    if a_stable or np.isfinite(real_interval):
        return 90.0 if a_stable else 0.0

    def stays(degrees):
        return np.isinf(_exits(scheme, -np.exp(1j * np.deg2rad(degrees)), ratio=1.01))

    angles = np.linspace(0, 90, 91)
    inside = stays(angles)
    if inside.all():
        return 90.0
    low, high = angles[max(inside.argmin(), 1) - 1], angles[max(inside.argmin(), 1)]
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if stays(np.array([middle]))[0] else (low, middle)
    return float(low)


def _window(scheme):
    radii = np.geomspace(0.05, 1e4, 1200)[:, None]
    z = radii * np.exp(1j * np.linspace(0, np.pi, 181))
    stable = _modulus(scheme, z) <= 1
    if stable[-1].any() or not stable.any():
        return -8.0, 8.0, -8.0, 8.0
    left, right, top = z.real[stable].min(), max(z.real[stable].max(), 0.0), z.imag[stable].max()
    margin = 0.15 * max(right - left, 2 * top)
    return left - margin, right + margin, -top - margin, top + margin
