"""Errors that are expected: each says in one sentence what was given and what would be valid.

The command line prints that sentence and exits with 2; any other exception is a fault of the program and keeps its traceback.
"""


class InputError(ValueError):
    """What was given cannot be worked with: the message shows the value and what would be valid."""


class MissingExtra(InputError):
    """An optional package is not installed: the message names the extra that brings it."""


class NoStatistics(InputError, AttributeError):
    """A stage has not run yet. An AttributeError too: to Python the attribute is not there, for `hasattr` and the like."""


class Divergence(InputError):
    """A training left the finite numbers: the message says why, in terms of the scheme's stability."""


class Unsolved(RuntimeError):
    """An equation was not solved to its tolerance, and `on_failure` is "raise"."""
