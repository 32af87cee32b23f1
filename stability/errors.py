"""The one name that all of `stability` shares with `odenets`: the class of expected errors."""

from odenets.errors import InputError, MissingExtra

__all__ = ["InputError", "MissingExtra"]
