"""Warm starts: solves that begin where the last pass ended. The guesses belong to a caller; modules keep no state."""

from typing import Any

import torch
from torch import Tensor, nn

from odenets.nets.stage import ODEStage, stages
from odenets.solve.log import Guesses
from odenets.types import Counts, State


class WarmStart(nn.Module):
    """A network whose implicit solves start, image by image, from where that image's last ones ended.

    For passes that follow each other closely, as the steps of an attack do: between two of them the roots hardly move, nor do
    the solutions of the backward passes' linear systems but for a factor, which start there too.
    The tolerance is relative to the predictor's residual in an image's first pass. Solves of linear systems start from zero,
    and so do those of a stage whose "unrolled" iteration is to be differentiated: it is the derivative of the whole way.
    Whoever reports a result evaluates `net` itself, cold: a warm solve follows its branch of roots.

    Args:
        net: Network of `ODEStage`s; shared, not copied, and unchanged.
    """

    takes_indices = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._indices: Tensor | None = None
        self._known: dict[tuple[ODEStage, int], list[tuple[Tensor, Tensor]]] = {}
        self._adjoints: dict[tuple[ODEStage, int], list[Tensor]] = {}
        self._last: tuple[Tensor | None, dict[tuple[ODEStage, int], Guesses]] = (None, {})

    def forward(self, x: State, indices: Counts | None = None) -> Tensor:
        """net(x) for images (B, ...).

        Args:
            x: Images.
            indices: (B,) whole numbers, the identity of each image. Solves start warm if all of them are known from the last
                cold pass, else cold, and so do all without indices.
        """
        self._take_adjoints()
        rows = self._rows_of(indices)
        found: dict[tuple[ODEStage, int], Guesses] = {}

        def supply(stage: ODEStage, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            state = args[0] if args else kwargs["y"]
            key = stage, sum(other is stage for other, _ in found)  # a net may run a stage several times
            unrolled = stage.gradient == "unrolled" and torch.is_grad_enabled()
            known = None if rows is None or unrolled else self._known.get(key)
            if len(state) != len(x):
                return args, kwargs  # these states are no images
            adjoints = None if rows is None else self._adjoints.get(key)
            found[key] = Guesses(
                known and [(increments[rows], scale[rows]) for increments, scale in known],
                adjoints and [u[rows] for u in adjoints],
            )
            return args, {**kwargs, "guesses": found[key]}

        hooks = [stage.register_forward_pre_hook(supply, with_kwargs=True) for stage in stages(self.net).values()]
        try:
            value = self.net(x)
        finally:
            for hook in hooks:
                hook.remove()
        if rows is None:
            self._indices = None if indices is None else indices.cpu()
            self._known, self._adjoints = {key: guesses.found() for key, guesses in found.items()}, {}
        else:
            for key in found.keys() & self._known.keys():
                for known, ended in zip(self._known[key], found[key].found()):
                    for part, values in zip(known, ended):
                        part[rows] = values
        self._last = rows, found
        return value

    def _take_adjoints(self) -> None:
        """What the backward passes through the last forward pass found, now that they are over."""
        rows, passed = self._last
        self._last = None, {}
        for key, guesses in passed.items():
            found = guesses.found_adjoints()
            if found and rows is None:
                self._adjoints[key] = found
            elif found and key in self._known:
                kept = self._adjoints.setdefault(key, [torch.zeros_like(increments) for increments, _ in self._known[key]])
                for whole, u in zip(kept, found):
                    whole[rows] = u

    def _rows_of(self, indices: Counts | None) -> Tensor | None:
        """Rows of the images in what is known, (B,) on the host; None for a cold start."""
        if self._indices is None or indices is None:
            return None
        order = torch.argsort(self._indices)
        place = torch.searchsorted(self._indices[order], indices.cpu()).clamp_max(len(order) - 1)
        rows = order[place]
        return rows if torch.equal(self._indices[rows], indices.cpu()) else None
