"""The grammar of specs, name(parameter=value,...) and FILE.py:NAME, which attacks share with schemes and fields."""

from odenets.own import Own, find_own, is_own
from odenets.specs import canonical, read_arguments, read_name

__all__ = ["Own", "canonical", "find_own", "is_own", "read_arguments", "read_name"]
