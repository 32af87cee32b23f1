"""Splitting: a step through each part of a field after the other, each by the scheme that suits it.

A field says its parts by an attribute `parts`, the pair (skew, dissipative) of fields that add up to it. The skew part turns
states and keeps their distances, which no explicit step does; the dissipative part contracts, and an explicit step does so up
to its limit, without an equation to solve. A field without parts is skew for all the scheme knows, and moved as that part is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from odenets.errors import InputError
from odenets.schemes.linearly_implicit import ExponentialEuler
from odenets.schemes.runge_kutta import RungeKutta
from odenets.schemes.scheme import GRADIENTS, Scheme
from odenets.schemes.solving import SolvingScheme
from odenets.schemes.tableaux import EXPLICIT_EULER, HEUN, IMPLICIT_MIDPOINT
from odenets.solve.log import Record
from odenets.solve.precision import check_precision
from odenets.types import Field, State, Time

SKEW = ("implicit_midpoint", "exponential_euler")
KRYLOV = 1e-10  # tolerance of the exponential, which is cheap: it converges faster than geometrically


@dataclass(frozen=True, eq=False, kw_only=True)
class Splitting(SolvingScheme):
    """The skew part of a field by an implicit or exponential step, the dissipative part by an explicit one.

    Args:
        composition: "lie", one step of each, of order 1; or "strang", half a step of the skew part before and behind a step of
            Heun's method, of order 2 on autonomous fields.
        skew: What moves the skew part: "implicit_midpoint", for which linear parts are turned by their Cayley transform, or
            "exponential_euler", by their exponential.

    The other settings are those of the equations, see `SolvingScheme`.
    """

    composition: str = "lie"
    skew: str = "implicit_midpoint"

    name = "splitting"
    implicit = True
    iterates = True
    gradients = GRADIENTS
    evaluations = None
    source = "Trotter (1959); Strang (1968), SIAM J. Numer. Anal. 5; Hairer, Lubich, Wanner (2006), section II.5"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.composition not in ("lie", "strang"):
            raise InputError(f"splitting: composition must be lie or strang, got {self.composition!r}")
        if self.skew not in SKEW:
            raise InputError(f"splitting: skew must be one of {', '.join(SKEW)}, got {self.skew!r}")

    @property
    def order(self) -> int:
        """Classical order."""
        return 1 if self.composition == "lie" else 2

    @property
    def stages(self) -> int:
        """Stages of a step, over all its moves."""
        return 2 if self.composition == "lie" else 4

    @property
    def moves(self) -> tuple[tuple[int, Scheme, float], ...]:
        """What a step is composed of, in order: (which part, the scheme, its share of the step)."""
        turn = self._turn()
        if self.composition == "lie":
            return (0, turn, 1.0), (1, RungeKutta(EXPLICIT_EULER), 1.0)
        return (0, turn, 0.5), (1, RungeKutta(HEUN), 1.0), (0, turn, 0.5)

    def _turn(self) -> Scheme:
        if self.skew == "exponential_euler":
            return ExponentialEuler(min(self.tol, KRYLOV), self.max_iterations, self.on_failure)
        solve = {key: value for key, (value, _) in self.parameters.items() if key not in ("composition", "skew")}
        return RungeKutta(IMPLICIT_MIDPOINT, **solve)

    def step(self, f: Field, t: Time, y: State, h: Time, gradient: str = "exact", record: Record | None = None) -> State:
        """One step; see `Scheme.step`."""
        check_precision(y, self)
        parts, passed = getattr(f, "parts", (f,)), 0.0
        for part, scheme, share in self.moves:
            if part < len(parts):
                y = scheme.step(parts[part], t + passed * h, y, share * h, gradient, record)
            passed += share if part == 0 and self.composition == "strang" else 0.0
        return y

    def amplification(self, z: ArrayLike) -> np.ndarray:
        """R(z) of the steps of the skew part, which is all of a field without parts."""
        z = np.asarray(z, dtype=np.complex128)
        turns = [(scheme, share) for part, scheme, share in self.moves if part == 0]
        return np.asarray(np.prod([scheme.amplification(share * z) for scheme, share in turns], axis=0))
