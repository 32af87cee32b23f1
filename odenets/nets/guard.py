"""Fields that write where others read: into the state they are given, or into a slope they returned before."""
import weakref
from functools import partial

import torch

from odenets.errors import InputError
from odenets.solve.transforms import transforming


class Guard:
    """Evaluates the fields of one pass so that no state changes under the scheme's hands.

    A block may begin with an in-place ReLU, and its caller still needs the state. PyTorch counts the writes to a tensor: the
    first evaluation of each function gets a copy, and from then on only a function that wrote into it does. Writes that the
    counter does not see, through `.data` or NumPy, are not seen here either.
    """

    def __init__(self):
        self.writes, self._returned = {}, []

    def trust(self, function):
        """Spare a function that is known to read only the first copy."""
        self.writes.setdefault(id(function), False)

    def __call__(self, function, *arguments):
        """function(*arguments), the last of which is the state and stays as it is.

        Raises:
            ValueError: The function wrote into this state, but not into the first one; it wrote into a tensor that it had
                returned before and that is still in use.
        """
        *before, y = arguments
        if _uncounted(y):
            return function(*before, y.clone()).clone()
        writes = self.writes.get(id(function))
        given = y if writes is False else y.clone()
        version = given._version
        slope = function(*before, given)
        wrote = given._version != version
        if wrote and writes is False:
            raise InputError("a field wrote into its argument, though it had not in its first evaluation of this pass, and the "
                             "state is lost: use out-of-place operations, or let it write each time")
        self.writes[id(function)] = wrote or bool(writes)
        self._check_returned()
        self._returned.append((weakref.ref(slope), slope._version))
        return slope

    def _check_returned(self):
        # By weak references: a slope that nobody holds may be written to, and must not be kept alive for this.
        self._returned = [(reference, version) for reference, version in self._returned if reference() is not None]
        if any(slope._version != version for reference, version in self._returned if (slope := reference()) is not None):
            raise InputError("a field wrote into a slope that it had returned before and that the scheme still needs: return a "
                             "new tensor from each evaluation")


def _uncounted(y):
    """Whether writes to y go uncounted: then every evaluation gets a copy (under torch.compile, it costs nothing)."""
    return torch.compiler.is_compiling() or transforming() or torch.is_inference_mode_enabled() or y.is_inference()


def guarded(field, guard=None):
    """field(t, y) evaluated by a `Guard`, by default one of its own; a field that `takes_guard` is given it instead."""
    guard = guard or Guard()
    return partial(field, guard=guard) if getattr(field, "takes_guard", False) else partial(guard, field)
