"""bfloat16 in training: passes under autocast, within which an `odenets.ODEStage` keeps its states and solves in float32."""

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")


def low_precision(net: nn.Module, precision: str) -> nn.Module:
    """The network as a loss sees it: x -> logits in float32, the passes through it under autocast with "bfloat16"."""
    return net if precision == "float32" else _Autocast(net)


class _Autocast(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()
