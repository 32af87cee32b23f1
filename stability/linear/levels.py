"""The supremum that defines a Kreiss constant, enclosed: a search that cannot overlook a peak.

N(d), the largest resolvent norm at the distance d from the threshold (on a vertical line, or on a circle), is found for all
of the line at once: s is a singular value of z I - A at those z of the line that are eigenvalues of a matrix of twice the
size. By Hadamard's three lines and three circles theorems log N is convex in Re z, or in log |z|, so that two values of N
bound all between them: intervals of d are halved until no bound is above what was found.

Sources: Byers (1988), SIAM J. Sci. Stat. Comput. 9; Boyd & Balakrishnan (1990), Syst. Control Lett. 15; Genin, Stefan, Van
Dooren (1999) for the circle; Mitchell (2020), SIAM J. Sci. Comput. 42, for such certificates of Kreiss constants.
"""

import heapq
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigvals, solve, svdvals

from stability.linear.pseudospectra import Smallest

Peak = tuple[float, complex]  # log(d ||resolvent||), and the z where it is taken

MARGIN = 1e-2  # what the bound may lie above the supremum found, as a share
SLACK = 1e-3  # the same, of the largest resolvent norm of a line
EVALUATIONS = 250  # lines after which the search gives up
NEAR = 1e-6  # distance from the line, relative to the norm, within which rounding may have moved an eigenvalue
APART = 1e-6  # of a centre of inversion from the eigenvalues, as a gap between singular values


def crossings(A: np.ndarray, s: float, position: float, disc: bool) -> np.ndarray:
    """The t >= 0 where s is a singular value of z I - A: z = position + it, or position e^{it}; and a few t more."""
    eye = np.eye(len(A))
    if disc:
        B, s = A / position, s / position
        z = _on_circle(B, s)
        z = z[np.isfinite(z) & (z.imag >= 0)]
        return np.angle(z[abs(abs(z) - 1) <= NEAR * (1 + np.linalg.norm(B))])
    B = A - position * eye
    z = eigvals(np.block([[B, s * eye], [-s * eye, -B.T]]))
    return z.imag[(abs(z.real) <= NEAR * np.linalg.norm(B)) & (z.imag >= 0)]


def _on_circle(B: np.ndarray, s: float) -> np.ndarray:
    """The z with det(P - z Q) = 0, among them those of the unit circle where s is a singular value of z I - B.

    By inversion about a point c of the circle: 1 / (z - c) are eigenvalues of a matrix, in a tenth of the time that the pencil
    takes. P - c Q is singular where s is a singular value of c I - B, and by a permutation a symmetric matrix whose eigenvalues
    are s plus and minus those: their gap says whether c may serve.
    """
    eye = np.eye(len(B))
    P, Q = np.block([[B, s * eye], [0 * eye, eye]]), np.block([[eye, 0 * eye], [s * eye, B.T]])
    for c in (-1.0, 1.0, 1j):
        if abs(svdvals(B - c * eye) - s).min() > APART * (1 + np.linalg.norm(B)):
            inverted = eigvals(solve(P - c * Q, Q))
            return c + 1 / inverted[inverted != 0]
    return eigvals(P, Q)


def resolvent_peak(A: np.ndarray, smallest: Smallest, position: float, disc: bool, t: np.ndarray) -> tuple[float, float, float]:
    """Of the line at `position`: a lower and an upper bound of the logarithm of the largest resolvent norm, and the t where
    the lower one is taken. t: places to begin with."""
    place = (lambda t: position * np.exp(1j * t)) if disc else (lambda t: position + 1j * t)
    best, at = np.inf, 0.0
    while True:
        values = np.maximum(smallest(place(t)), np.finfo(float).tiny)
        here = int(values.argmin())
        if values[here] >= best * (1 - SLACK):  # nothing further down
            best, at = (values[here], t[here]) if values[here] < best else (best, at)
            return -np.log(best), -np.log(best * (1 - SLACK)), at
        best, at = values[here], t[here]
        t = np.unique(crossings(A, best * (1 - SLACK), position, disc))
        if not len(t):
            return -np.log(best), -np.log(best * (1 - SLACK)), at
        ends = np.concatenate([[0.0], t, [np.pi if disc else t[-1]]])
        t = np.unique((ends[:-1] + ends[1:]) / 2)


def enclosed(
    A: np.ndarray,
    smallest: Smallest,
    w: float,
    disc: bool,
    distances: tuple[float, float],
    t: np.ndarray,
    polish: Callable[[float, float], Peak],
    best: Peak,
) -> tuple[Peak, float]:
    """The supremum of log(d N(d)) over low <= d <= high, from above, and an improved `best` with its place.

    Args:
        A: (n, n) real; its eigenvalues lie within w + low.
        smallest: Smallest singular values of z I - A at an array of z.
        w, disc: Threshold and domain.
        distances: (low, high).
        t: Places along a line where peaks are likely: of eigenvalues.
        polish: (d, t) -> (value, place) of a local search from there.
        best: (value, place) so far; 0 is always reached, at infinity.

    Returns:
        (best, bound): bound inf where the search gave up.
    """
    found: dict[float, float] = {}
    peaks: list[float] = []

    def line(d: float) -> float:
        nonlocal best
        if d not in found:
            lower, upper, at = resolvent_peak(A, smallest, w + d, disc, np.append(t, peaks[-3:]))
            peaks.append(at)
            if np.log(d) + lower > best[0] + 1e-9:
                best = max(best, polish(d, at), key=lambda pair: pair[0])
            found[d] = upper
        return found[d]

    def interval(a: float, b: float) -> tuple[float, float, float]:
        return -_chord(a, b, line(a), line(b), w, disc), a, b

    intervals = [interval(*distances)]
    while -intervals[0][0] > best[0] + MARGIN:
        if len(found) >= EVALUATIONS:
            return best, np.inf
        _, a, b = heapq.heappop(intervals)
        middle = (a * b) ** 0.5
        heapq.heappush(intervals, interval(a, middle))
        heapq.heappush(intervals, interval(middle, b))
    return best, max(best[0], -intervals[0][0])


def _chord(a: float, b: float, above_a: float, above_b: float, w: float, disc: bool) -> float:
    """The largest log d + log N(d) on [a, b] that convexity allows."""
    ends = np.log([w + a, w + b]) if disc else np.array([a, b])
    slope = (above_b - above_a) / (ends[1] - ends[0])  # of log N, not positive
    if disc:
        d = w / (-slope - 1) if slope < -1 else b
    else:
        d = -1 / slope if slope < 0 else b
    d = np.clip(d, a, b)
    u = np.log(w + d) if disc else d
    return float(np.log(d) + above_a + slope * (u - ends[0]))
