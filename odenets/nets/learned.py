"""Stages whose integration is trained along with the weights: opt-in, since a scheme of the catalogue has no parameters."""

from collections.abc import Iterable

import torch
from torch import nn

from odenets.nets.guard import Guard, guarded
from odenets.schemes.multistep import LMResNet
from odenets.types import State, Trajectory


class LearnedLMStage(nn.Module):
    """LM-ResNet as its authors train it: y_{n+1} = (1 - k) y_n + k y_{n-1} + f_n(y_n) with one trainable k for each step but
    the first, which is explicit Euler. `set_scheme` leaves it alone.

    Args:
        fields: As in `ODEStage`, modules; one step each, h = 1.
        k: Initial value, in (-1, 1].

    Source: Lu, Zhong, Li, Dong (2018), Beyond Finite Layer Neural Networks.
    """

    def __init__(self, fields: Iterable[nn.Module], k: float = -0.1) -> None:
        super().__init__()
        LMResNet(k)  # the same range, the same complaint
        self.fields = nn.ModuleList(fields)
        self.k = nn.Parameter(torch.full((len(self.fields) - 1,), float(k)))

    def forward(self, y: State, trajectory: bool = False) -> State | Trajectory:
        """The state at the end, (B, ...); with `trajectory`, all states (1 + fields, B, ...), y first."""
        guard = Guard()
        first, *others = (guarded(field, guard) for field in self.fields)
        states = [y, y + first(0.0, y)]
        for n, (f, k) in enumerate(zip(others, self.k), start=1):
            states.append((1 - k) * states[-1] + k * states[-2] + f(float(n), states[-1]))
        return torch.stack(states) if trajectory else states[-1]
