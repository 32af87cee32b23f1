"""Embedded pairs: a Runge-Kutta method and, from the same stages, a second one whose difference estimates the local error.

As a tableau, a pair proves itself when it is made: the second method must have its order, and not the next.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from odenets.errors import InputError
from odenets.schemes.tableau import TOLERANCE, Tableau, order_defects
from odenets.schemes.tableaux import DOPRI5, HEUN, HNW


@dataclass(frozen=True, eq=False)
class EmbeddedPair:
    """A tableau that advances the state, and the weights of the method it is compared with.

    Args:
        name: As `adaptive(method=...)` takes it.
        tableau: Explicit method that advances the state.
        embedded: Weights of the other method; one more than the stages where it uses the slope at the new state too (FSAL:
            first same as last).
        embedded_order: Its order.
        source: Book or article.

    Raises:
        ValueError: The other method does not have its order.
    """

    name: str
    tableau: Tableau
    embedded: tuple[float, ...]
    embedded_order: int
    source: str

    def __post_init__(self) -> None:
        A, b = self.extended
        for order in range(1, self.embedded_order + 1):
            if order_defects(A, b, order) > TOLERANCE:
                raise InputError(f"embedded pair {self.name!r}: its weights miss order {order}; check them against "
                                 f"{self.source}")
        if order_defects(A, b, self.embedded_order + 1) < TOLERANCE:
            raise InputError(f"embedded pair {self.name!r}: its weights have more than order {self.embedded_order}")

    @property
    def reuses_slope(self) -> bool:
        """Whether the slope at the new state is a stage, and so the first one of the next step."""
        return len(self.embedded) > self.tableau.stages

    @property
    def extended(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, b) of the embedded method, on all stages."""
        A, s, n = self.tableau.A, self.tableau.stages, len(self.embedded)
        full = np.zeros((n, n))
        full[:s, :s] = A
        if n > s:
            full[s, :s] = self.tableau.b
        return full, np.array(self.embedded)

    @cached_property
    def error(self) -> tuple[float, ...]:
        """Weights of the slopes in the estimate of the local error, in plain numbers."""
        own = np.zeros(len(self.embedded))
        own[: self.tableau.stages] = self.tableau.b
        return tuple(map(float, own - self.embedded))

    @property
    def error_order(self) -> int:
        """The estimate of a step of size h falls as h to this power."""
        return self.embedded_order + 1


_BOGACKI_SHAMPINE = Tableau("bogacki_shampine", A=[[0, 0, 0], [1/2, 0, 0], [0, 3/4, 0]], b=[2/9, 1/3, 4/9], order=3,
                            source="Bogacki & Shampine (1989), Appl. Math. Lett. 2", r_polynomial=(1, 1, 1/2, 1/6))

_FEHLBERG2 = Tableau("fehlberg2", A=[[0, 0, 0], [1/2, 0, 0], [1/256, 255/256, 0]], b=[1/512, 255/256, 1/512], order=2,
                     source="Fehlberg (1969), NASA TR R-315", r_polynomial=(1, 1, 1/2, 255/(2*256*512)))

PAIRS = {pair.name: pair for pair in (
    EmbeddedPair("dopri5", DOPRI5, (5179/57600, 0, 7571/16695, 393/640, -92097/339200, 187/2100, 1/40), 4,
                 HNW + ", table II.5.2"),
    EmbeddedPair("bosh3", _BOGACKI_SHAMPINE, (7/24, 1/4, 1/3, 1/8), 2, _BOGACKI_SHAMPINE.source),
    EmbeddedPair("fehlberg2", _FEHLBERG2, (1/256, 255/256, 0), 1, _FEHLBERG2.source),
    EmbeddedPair("adaptive_heun", HEUN, (1, 0), 1, HNW + ", section II.4"),
)}
