"""Norms and operators in units of a power of two, as the equations of a step have them."""

from odenets.solve.scaling import power_of_two, scaled_norm

__all__ = ["power_of_two", "scaled_norm"]
