"""What training computes in; an `odenets.ODEStage` keeps its states, and solves, in float32 whatever it is."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from odenets.solve.precision import float32_products

PRECISIONS = ("float32", "tf32", "bfloat16")


def low_precision(net: nn.Module, precision: str) -> nn.Module:
    """The network as a loss sees it: x -> logits in float32, the passes through it under autocast with "bfloat16"."""
    return _Autocast(net) if precision == "bfloat16" else net


def products(precision: str) -> AbstractContextManager:
    """The context of a step of training, forward and backward: with "tf32" a GPU rounds what it multiplies to 10 bits."""
    return float32_products("tf32") if precision == "tf32" else nullcontext()


class _Autocast(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()
