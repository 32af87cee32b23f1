"""bfloat16 in training: where autocast may act, and where it must not."""
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

import odenets

PRECISIONS = ("float32", "bfloat16")


def low_precision(net, precision):
    """The network as a loss sees it: x -> logits in float32, the passes through it under autocast with "bfloat16"."""
    return net if precision == "float32" else _Autocast(net)


class _Autocast(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()


@contextmanager
def float32_solves(net, precision):
    """Within the context the states in the stages of `net` are float32, and steps that solve or control errors compute in it.

    The rounded residual of a bfloat16 solve can vanish far from the root, so that it would report convergence: of a trained net
    (implicit, tol 1e-3, digits) the gradient was then 35 % off, and backward solves took three times the iterations. This way
    it is 3 % off, which is the rounding of the other layers; 1.5 % in float32. Nothing changes with "float32".
    """
    with ExitStack() as cleanup:
        for stage in odenets.stages(net).values() if precision != "float32" else ():
            for handle in _hooks(stage, alone=stage.scheme.evaluations is None):
                cleanup.callback(handle.remove)
        yield


def _hooks(stage, alone):
    """Make a stage take its state in float32 and, where `alone`, run without autocast."""
    entered = []

    def enter(_, args):
        entered.append(torch.autocast(args[0].device.type, enabled=False) if alone else ExitStack())
        entered[-1].__enter__()
        return args[0].float(), *args[1:]

    def leave(*_):
        entered.pop().__exit__(None, None, None)
    return stage.register_forward_pre_hook(enter), stage.register_forward_hook(leave, always_call=True)
