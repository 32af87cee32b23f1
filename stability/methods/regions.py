"""Linear stability of a scheme, read from its R(z): region, intervals, A- and L-stability, the largest step.

Whatever has an R(z) is served, so nothing here relies on R being analytic: the conjugate in the paper's ie_skip makes
|R| larger inside the left half-plane than on its edge, and all of the half-plane is sampled. A tableau, where there is
one, adds what A and b alone decide: the SSP coefficient, algebraic stability.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from odenets.schemes import Scheme, get_scheme
from stability.errors import InputError
from stability.methods.contractivity import is_algebraically_stable, ssp_coefficient
from stability.methods.exits import FARTHEST, first_exits, modulus

ROUNDING = 1e-8  # relative to the largest modulus, how far off an eigenvalue may be: what `stability.spectrum` converges to
Window = tuple[float, float, float, float]
FINE = 1.01  # panels of the two intervals, on which even a narrow gap of an R that is not smooth shall be found


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
    window: Window
    resolution: int

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(x, y, |R|) of shapes (columns,), (rows,), (rows, columns), ready for contour plots."""
        left, right, bottom, top = self.window
        spacing = max(right - left, top - bottom) / (self.resolution - 1)
        x = np.linspace(left, right, max(2, round((right - left) / spacing) + 1))
        y = np.linspace(bottom, top, max(2, round((top - bottom) / spacing) + 1))
        return x, y, modulus(self.scheme, x + 1j * y[:, None])


def region(scheme: str | Scheme, *, window: Window | None = None, resolution: int = 401) -> Region:
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
        if len(window) != 4 or not (window[0] < window[1] and window[2] < window[3]) or not np.isfinite(window).all():
            raise InputError(f"window must be (left, right, bottom, top), left < right and bottom < top, got {window}")
    tableau = scheme.tableau
    real, imaginary = map(float, first_exits(scheme, np.array([-1, 1j]), FINE))
    a_stable = real == imaginary == np.inf and _is_a_stable(scheme)
    return Region(
        scheme,
        real,
        imaginary,
        a_stable,
        a_stable and _vanishes_at_infinity(scheme),
        _sector(scheme, real, a_stable),
        None if tableau is None else ssp_coefficient(tableau.A, tableau.b),
        None if tableau is None else is_algebraically_stable(tableau.A, tableau.b),
        window or _window(scheme),
        resolution,
    )


@dataclass(frozen=True, eq=False)
class StableStep:
    """How a scheme treats a cloud of eigenvalues lambda of a field.

    step: sup{H: |R(h lambda)| <= 1 for all 0 < h <= H} over those that the flow does not expand (Re <= 0, see `snapped`); inf
        if nothing bounds it, 0 where |R| > 1 at every h, as on the imaginary axis under explicit Euler.
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


def snapped(eigenvalues: ArrayLike, rounding: float = ROUNDING) -> np.ndarray:
    """Eigenvalues with those that lie on the imaginary axis, or at 0, up to rounding put there: Re (and Im) are 0.

    The sign of Re then tells contracting, kept and expanding modes apart, for every reader alike. The band is as wide as the
    error, which goes with the size of the operator and not with each modulus: methods are backward stable and residuals
    relative to the norm, so that a small eigenvalue of a large operator is known no better than a large one.

    Args:
        eigenvalues: Complex array (..., n), the n of an operator along the last axis.
        rounding: Half the width of the band, relative to the largest modulus.

    Source: Golub & Van Loan (2013), Matrix Computations, section 7.2.2 and theorem 7.2.3, for the error.
    """
    z = np.asarray(eigenvalues, dtype=np.complex128)
    band = rounding * abs(z).max(axis=-1, keepdims=True, initial=0)
    return np.where(abs(z) <= band, 0, np.where(abs(z.real) <= band, z - z.real, z))


def growth_factors(scheme: Scheme, z: ArrayLike, rounding: float = ROUNDING) -> np.ndarray:
    """|R(z)| at eigenvalues z = h lambda of an operator, taken for `snapped`; overflow and poles as inf."""
    return modulus(scheme, snapped(z, rounding))


def largest_stable_step(
    scheme: str | Scheme, eigenvalues: ArrayLike, *, step_size: float = 1.0, rounding: float = ROUNDING
) -> StableStep:
    """The largest step at which a scheme keeps every mode from growing that the flow does not expand; the others apart.

    Args:
        scheme: A spec or a `Scheme`.
        eigenvalues: Complex array of any shape, eigenvalues of the Jacobian of the field (not multiplied by h).
        step_size: h at which `amplification` and `growth_ratio` are reported.
        rounding: How far off eigenvalues may be, relative to the largest modulus: what is nearer to the imaginary axis counts
            as on it, see `snapped`. 0 takes them as they are.

    Returns:
        A `StableStep`. For ie_skip the answer holds for normal Jacobians only: its step is no function of the Jacobian
        alone.

    Raises:
        ValueError: No eigenvalues, one that is not finite, a step size <= 0, rounding out of [0, 1), or a scheme without R(z).
    """
    scheme = get_scheme(scheme)
    eigenvalues = np.asarray(eigenvalues, dtype=np.complex128).ravel()
    if not eigenvalues.size or not np.isfinite(eigenvalues).all():
        raise InputError(f"eigenvalues must be finite and at least one, got {eigenvalues}")
    if not 0 < step_size < np.inf:
        raise InputError(f"step_size must be positive and finite, got {step_size}")
    if not 0 <= rounding < 1:
        raise InputError(f"rounding must lie in [0, 1), got {rounding}")
    eigenvalues = snapped(eigenvalues, rounding)
    kept, expanding = eigenvalues[(eigenvalues.real <= 0) & (eigenvalues != 0)], eigenvalues[eigenvalues.real > 0]
    directions, ray = np.unique(kept / abs(kept), return_inverse=True)
    # In portions: each ray takes some thousand values of R.
    portions = np.array_split(directions, 1 + directions.size // 128)
    steps = np.concatenate([first_exits(scheme, part) for part in portions])[ray] / abs(kept)
    step = steps.min(initial=np.inf)
    return StableStep(
        float(step),
        complex(kept[steps.argmin()]) if step < np.inf else None,
        float(modulus(scheme, step_size * eigenvalues).max()),
        expanding.size / eigenvalues.size,
        float(eigenvalues.real.max()),
        modulus(scheme, step_size * expanding) / np.exp(step_size * expanding.real),
    )


def _is_a_stable(scheme: Scheme) -> bool:
    # Denser towards the axis, where an analytic R has its maximum; pi/2 and pi included.
    angles = np.pi / 2 * (1 + np.linspace(0, 1, 121) ** 3)
    return bool(np.isinf(first_exits(scheme, np.where(angles == np.pi / 2, 1j, np.exp(1j * angles)))).all())


def _vanishes_at_infinity(scheme: Scheme) -> bool:
    # Its size alone would not tell R(infinity) = 1e-3 from a slow decay: the roots of BDF2 go as |z|^(-1/2).
    directions = np.exp(1j * np.linspace(np.pi / 2, np.pi, 31))
    far, near = (modulus(scheme, radius * directions) for radius in (FARTHEST, FARTHEST / 100))
    return bool(((far < 1e-2) & (far <= 0.2 * near)).all())


def _sector(scheme: Scheme, real_interval: float, a_stable: bool) -> float:
    if a_stable or np.isfinite(real_interval):
        return 90.0 if a_stable else 0.0

    def stays(degrees: np.ndarray) -> np.ndarray:
        return np.isinf(first_exits(scheme, -np.exp(1j * np.deg2rad(degrees))))

    angles = np.linspace(0, 90, 91)
    inside = stays(angles)
    if inside.all():
        return 90.0
    first = max(int(inside.argmin()), 1)
    low, high = angles[first - 1], angles[first]
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if stays(np.array([middle]))[0] else (low, middle)
    return float(low)


def _window(scheme: Scheme) -> Window:
    radii = np.geomspace(0.05, 1e4, 1200)[:, None]
    z = radii * np.exp(1j * np.linspace(0, np.pi, 181))
    stable = modulus(scheme, z) <= 1
    if stable[-1].any() or not stable.any():
        return -8.0, 8.0, -8.0, 8.0
    left, right, top = z.real[stable].min(), max(z.real[stable].max(), 0.0), z.imag[stable].max()
    margin = 0.15 * max(right - left, 2 * top)
    return left - margin, right + margin, -top - margin, top + margin
