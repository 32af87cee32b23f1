"""The grammar of specs, name(parameter=value,...), which attacks share with schemes and fields."""

from odenets.specs import canonical, read_arguments, read_name

__all__ = ["canonical", "read_arguments", "read_name"]
