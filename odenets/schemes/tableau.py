"""Runge-Kutta methods as data that proves itself: a typing error in a coefficient raises at import.

Knows numpy and nothing else. The nodes c and the stability function R are derived from A and b, never stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from odenets.errors import InputError

Tree = tuple  # of trees
TOLERANCE = 1e-9  # far above the rounding of a coefficient, far below any typing error


@cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with `order` vertices, each the sorted tuple of its subtrees (Butcher 1963)."""

    def forests(vertices: int, largest: tuple[int, int]) -> Iterator[tuple[Tree, ...]]:
        # Multisets of trees with `vertices` vertices in all, in non-increasing order so that each appears once.
        if vertices == 0:
            yield ()
        for size in range(min(vertices, largest[0]), 0, -1):
            for index, tree in enumerate(rooted_trees(size)):
                if (size, index) <= largest:
                    for rest in forests(vertices - size, (size, index)):
                        yield (tree, *rest)

    return tuple(forests(order - 1, (order, 0)))


def size(tree: Tree) -> int:
    """Number of vertices of a rooted tree."""
    return 1 + sum(size(branch) for branch in tree)


def density(tree: Tree) -> int:
    """gamma(tree): the product over all vertices of the size of the subtree above it."""
    return size(tree) * prod(density(branch) for branch in tree)


def order_defects(A: np.ndarray, b: np.ndarray, order: int) -> float:
    """Largest defect |sum_i b_i Phi_i(tree) - 1/gamma(tree)| among the rooted trees of exactly `order` vertices.

    A method has order p when the defect vanishes for every order up to p.

    Source: Hairer, Norsett, Wanner I (1993), theorem II.2.13.
    """

    def weights(tree: Tree) -> np.ndarray:
        return prod((A @ weights(branch) for branch in tree), start=np.ones(len(b)))

    return max(abs(b @ weights(tree) - 1 / density(tree)) for tree in rooted_trees(order))


Matrix = tuple[tuple[float, ...], ...]


class Block(NamedTuple):
    """Stages solved together: known, their rows of A before the block; A within it; its inverse (None: explicit); nodes."""

    known: Matrix
    A: Matrix
    inverse: Matrix | None
    c: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Tableau:
    """The coefficients of a Runge-Kutta method, verified when constructed.

    Y_i = y + h sum_j A_ij f(t + c_i h, Y_j),  y_next = y + h sum_i b_i f(t + c_i h, Y_i),  c = A 1.

    Args:
        name: Lower-case name, unique in the catalogue.
        A: (s, s) stage coefficients.
        b: (s,) weights.
        order: Classical order. Every rooted-tree condition up to it must hold, and one of the next order must fail.
        source: Book or article, with the equation or table.
        structure: "explicit" (strictly lower triangular), "diagonal" (lower triangular) or "coupled".
        equal_diagonal: The implicit stages share one coefficient (SDIRK), so that one factorisation would serve all.
        r_infinity: Claimed limit of R at infinity, where the order conditions leave a coefficient free.
        r_polynomial: Claimed coefficients of an explicit R, lowest first; pins down tableaux of low order.

    Raises:
        ValueError: A claim does not hold; names the tableau, the claim and what was found.
    """

    name: str
    A: Any  # given as any array-like, held as a read-only array
    b: Any
    order: int
    source: str
    structure: str = "explicit"
    equal_diagonal: bool = False
    r_infinity: float | None = None
    r_polynomial: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("A", "b"):
            values = np.array(getattr(self, field), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, field, values)
        for claim, holds in self._claims():
            if not holds:
                raise InputError(f"tableau {self.name!r}: {claim} does not hold; check its coefficients against {self.source}")

    def _claims(self) -> Iterator[tuple[str, bool]]:
        """Pairs (claim in words, whether it holds), the cheap and basic ones first."""
        A, b, s = self.A, self.b, len(self.b)
        yield "A is (s, s) and b is (s,), all finite", A.shape == (s, s) and np.isfinite(A).all() and np.isfinite(b).all()
        yield "structure is explicit, diagonal or coupled", self.structure in ("explicit", "diagonal", "coupled")
        above = {"explicit": 0, "diagonal": 1, "coupled": s}[self.structure]
        yield f"the {self.structure} structure (zero pattern of A)", not np.triu(A, above).any()
        if self.equal_diagonal:
            diagonal = np.diag(A)[np.diag(A) != 0]
            yield "one coefficient on the diagonal", np.ptp(diagonal) < TOLERANCE
        for order in range(1, self.order + 1):
            yield f"order {order} of {self.order}", order_defects(A, b, order) < TOLERANCE
        yield f"order exactly {self.order}", order_defects(A, b, self.order + 1) > TOLERANCE
        if self.r_infinity is not None:
            limit = self.r_at_infinity
            yield f"R(infinity) = {self.r_infinity:g} (found {limit:.9g})", abs(limit - self.r_infinity) < TOLERANCE
        if self.r_polynomial is not None:
            numerator, denominator = self.stability_polynomials
            claimed = np.pad(self.r_polynomial, (0, s + 1 - len(self.r_polynomial)))
            # Relative to each coefficient: those of a Chebyshev polynomial span many decades, and each pins some entries.
            close = np.abs(numerator - claimed) <= 1e-12 * np.abs(claimed)
            yield "the claimed stability polynomial", close.all() and not denominator[1:].any()

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @cached_property
    def c(self) -> np.ndarray:
        """(s,) nodes, the row sums of A: stage i is evaluated at t + c_i h."""
        return self.A.sum(axis=1)

    @property
    def implicit(self) -> bool:
        """Whether a step solves an equation."""
        return self.structure != "explicit"

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Ranges [start, stop) of stages that must be solved together, in order: the blocks of the triangular form of A."""
        blocks, start = [], 0
        for stop in range(1, self.stages + 1):
            if not self.A[start:stop, stop:].any():
                blocks.append((start, stop))
                start = stop
        return tuple(blocks)

    @cached_property
    def plan(self) -> tuple[Block, ...]:
        """The `Block`s of stages in order, in plain numbers: what a step goes through."""

        def plain(rows: np.ndarray) -> Matrix:
            return tuple(tuple(map(float, row)) for row in rows)

        blocks = []
        for start, stop in self.blocks:
            A = self.A[start:stop, start:stop]
            inverse = plain(np.linalg.inv(A)) if A.any() else None
            blocks.append(Block(plain(self.A[start:stop, :start]), plain(A), inverse, tuple(map(float, self.c[start:stop]))))
        return tuple(blocks)

    @cached_property
    def weights(self) -> tuple[float, ...] | None:
        """b in plain numbers; None where the last stage is the result already (stiffly accurate)."""
        return None if self.implicit and np.array_equal(self.A[-1], self.b) else tuple(map(float, self.b))

    @cached_property
    def stability_polynomials(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (P, Q), lowest first, of R(z) = P(z) / Q(z) with Q(z) = det(I - zA).

        Source: Hairer & Wanner II (1996), proposition IV.3.2; Q by Faddeev and LeVerrier, exact for nilpotent A.
        """
        s, M = self.stages, np.eye(self.stages)
        Q = np.zeros(s + 1)
        Q[0] = 1.0
        for k in range(1, s + 1):
            M = self.A @ M
            Q[k] = -np.trace(M) / k
            M = M + Q[k] * np.eye(s)
        moments: list[float] = [1.0]
        vector = np.ones(s)
        for _ in range(s):
            moments.append(float(self.b @ vector))
            vector = self.A @ vector
        return np.convolve(Q, moments)[: s + 1], Q

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R(z) = 1 + z b^T (I - zA)^-1 1, the growth of one step on y' = lambda y with z = h lambda.

        Args:
            z: Complex array of any shape.

        Returns:
            Complex array of the same shape; infinite at a pole.

        Source: Hairer & Wanner II (1996), equation IV.3.2.
        """
        z = np.asarray(z, dtype=np.complex128)
        if self.implicit:
            # Few stages: the quotient of polynomials stays accurate at infinity, where I - zA becomes ill-conditioned.
            P, Q = (np.polynomial.polynomial.polyval(z, polynomial) for polynomial in self.stability_polynomials)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(Q == 0, np.inf, P / Q)
        # Explicit: forward substitution, since the power basis of a long Chebyshev polynomial cancels catastrophically.
        stages = np.zeros((self.stages, *z.shape), dtype=np.complex128)
        for i in range(self.stages):
            stages[i] = 1 + z * np.tensordot(self.A[i, :i], stages[:i], 1)
        return np.asarray(1 + z * np.tensordot(self.b, stages, 1))

    @property
    def r_at_infinity(self) -> float:
        """The limit of R(z) for |z| -> infinity."""
        P, Q = self.stability_polynomials
        degree = np.flatnonzero(np.abs(Q) > TOLERANCE)[-1]
        return P[degree] / Q[degree] if not (np.abs(P[degree + 1 :]) > TOLERANCE).any() else np.inf
