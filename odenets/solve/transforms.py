"""Which differentiation is under way around a call: the one place that asks torch's internals."""
import torch


def transforming():
    """Whether a transform of torch.func (vjp, jvp, grad, ...) is active; autograd.grad cannot run inside it."""
    return torch._C._are_functorch_transforms_active()


def dual_level():
    """Whether dual numbers of torch.autograd.forward_ad are active."""
    return torch.autograd.forward_ad._current_level >= 0
