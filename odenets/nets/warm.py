"""Warm starts: solves that begin where the last pass ended. The guesses belong to a caller; modules keep no state."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odenets.nets.stage import stages
from odenets.solve.log import Guesses
from odenets.types import Counts, State


class WarmStart(nn.Module):
    """A network whose implicit solves start, image by image, from the solution of the previous pass.

    For passes that follow each other closely, as the steps of an attack do: between two of them the roots hardly move.
    The tolerance is relative to the predictor's residual in the first pass. Solves of linear systems start from zero.
    Whoever reports a result evaluates `net` itself, cold: a warm solve follows its branch of roots.

    Args:
        net: Network of `ODEStage`s; shared, not copied, and unchanged.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._indices: Tensor | None = None
        self._guesses: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def forward(self, x: State, indices: Counts | None = None) -> Float[Tensor, "batch classes"]:
        """net(x) for images (B, ...).

        Args:
            x: Images.
            indices: (B,) whole numbers, the identity of each image. Solves start warm if each of them took part in the
                previous pass, else cold, and so do all without indices.
        """
        rows = self._rows_of(indices)
        found, hooks = {}, []

        def supply(stage: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            known = None if rows is None else [tuple(part[rows] for part in pair) for pair in self._guesses[stage]]
            found[stage] = Guesses(known)
            return args, {**kwargs, "guesses": found[stage]}

        for stage in stages(self.net).values():
            hooks.append(stage.register_forward_pre_hook(supply, with_kwargs=True))
        try:
            value = self.net(x)
        finally:
            for hook in hooks:
                hook.remove()
        self._indices = None if indices is None else indices.cpu()
        self._guesses = {stage: guesses.found() for stage, guesses in found.items()}
        return value

    def _rows_of(self, indices: Counts | None) -> Tensor | None:
        """Rows of the previous pass, (B,) on the host; None for a cold start."""
        if self._indices is None or indices is None:
            return None
        order = torch.argsort(self._indices)
        place = torch.searchsorted(self._indices[order], indices.cpu()).clamp_max(len(order) - 1)
        rows = order[place]
        return rows if torch.equal(self._indices[rows], indices.cpu()) else None
