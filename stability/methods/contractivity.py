"""Whether a Runge-Kutta step inherits from the flow that norms do not grow: what A and b alone decide."""

import numpy as np

ROUNDING = 1e-10  # a sign counts from here on


def ssp_coefficient(A: np.ndarray, b: np.ndarray) -> float:
    """Radius of absolute monotonicity: the largest r with K (I + rK)^-1 >= 0, (I + rK)^-1 1 >= 0, K = [[A, 0], [b, 0]].

    Up to h = r * h_Euler the scheme keeps every convex bound that explicit Euler keeps at h_Euler. inf for implicit
    Euler.

    Source: Kraaijevanger (1991), BIT 31, theorem 4.2; Gottlieb, Ketcheson, Shu (2011), section 3.
    """
    s = len(b)
    K = np.zeros((s + 1, s + 1))
    K[:s, :s], K[s, :s] = A, b

    def monotone(r: float) -> bool:
        try:
            inverse = np.linalg.inv(np.eye(s + 1) + r * K)
        except np.linalg.LinAlgError:
            return False
        return (r * K @ inverse).min() >= -ROUNDING and inverse.sum(1).min() >= -ROUNDING

    # Below the first radius a violation could hide in the tolerance. Absolute monotonicity at r implies it at every
    # smaller one.
    low = 1e-4
    if not monotone(low):
        return 0.0
    while monotone(2 * low):
        low *= 2
        if low > 1e6:
            return np.inf
    high = 2 * low
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if monotone(middle) else (low, middle)
    return low


def is_algebraically_stable(A: np.ndarray, b: np.ndarray) -> bool:
    """Whether b >= 0 and diag(b) A + A^T diag(b) - b b^T >= 0: then non-expansive flows give non-expansive steps.

    Source: Burrage & Butcher (1979); Hairer & Wanner II (1996), definition IV.12.5.
    """
    weighted = b[:, None] * A
    return bool(b.min() >= -ROUNDING and np.linalg.eigvalsh(weighted + weighted.T - np.outer(b, b)).min() >= -ROUNDING)
