"""Time-stepping schemes, each written down once: the integrator steps with it, the analysis draws it, the tests prove it."""

from odenets.schemes.catalogue import get_scheme, list_schemes
from odenets.schemes.scheme import GRADIENTS, Scheme
from odenets.schemes.tableau import Tableau

__all__ = ["GRADIENTS", "Scheme", "Tableau", "get_scheme", "list_schemes"]
