"""The Krylov process that spectra share with the equations of a step."""

from odenets.solve.krylov import Krylov, ended, orthogonalise

__all__ = ["Krylov", "ended", "orthogonalise"]
