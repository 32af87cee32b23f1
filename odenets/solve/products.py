"""Products with the Jacobian of a map and with its transpose, never forming it."""

from collections.abc import Callable
from typing import Any

import torch

from odenets.types import State


def jacobian_products(
    function: Callable[[State], State], z: State
) -> tuple[Callable[[State], State], Callable[[State], State]]:
    """The maps v -> J v and w -> J^T w for J the Jacobian of `function` at z; J^H w where complex.

    J v is the pullback of the (linear) pullback: it needs no forward-mode rules, which decompose GroupNorm into many small
    kernels, and works inside a level of dual numbers, where torch.func.jvp does not.
    """
    pullback: Callable[..., Any] = torch.func.vjp(function, z)[1]
    pushforward: Callable[..., Any] = torch.func.vjp(lambda w: pullback(w)[0], torch.zeros_like(z))[1]
    return lambda v: pushforward(v)[0], lambda w: pullback(w)[0]
