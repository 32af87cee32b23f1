"""Small trained networks, and wrappers that make cheats of them, for the tests of the audit."""
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import odenets
import stability
from stability import Linf

THREAT = Linf(0.1)


@cache
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images / 16, dtype=torch.float32)[order, None], torch.tensor(data.target)[order]


def sample(count=40):
    """Images and labels that no network here was trained on."""
    return tuple(part[1400 : 1400 + count] for part in digits())


def accuracy(net):
    x, y = (part[1400:] for part in digits())
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).double().mean())


def fit(net, epochs=3, attacked=False, seed=0):
    """Train in place for a few seconds, on images after one step of size 0.1 along the gradient if `attacked`."""
    x, y = digits()
    generator, optimiser = torch.Generator().manual_seed(seed), torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1400, generator=generator).split(64):
            images = x[rows]
            if attacked:
                point = (images + 0.1 * (2 * torch.rand(images.shape, generator=generator) - 1)).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(point), y[rows]), point)
                images = (images + (point.detach() - images + 0.1 * gradient.sign()).clamp(-0.1, 0.1)).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(net(images), y[rows]).backward()
            optimiser.step()
    return net.eval()


@cache
def weights(scheme="explicit", attacked=False, seed=0):
    """Of a small net trained with a scheme."""
    torch.manual_seed(seed)
    return fit(odenets.ode_resnet_small(scheme=scheme), 6 if attacked else 3, attacked, seed).state_dict()


def trained(scheme="explicit", trained_with="explicit", attacked=False):
    """A new small net with cached weights, in eval mode."""
    net = odenets.ode_resnet_small(scheme=scheme)
    net.load_state_dict(weights(trained_with, attacked))
    return net.eval()


def verdicts(net, images=None, **settings):
    """An audit, and {name of a check: its verdict}."""
    result = stability.audit(net, *(images or sample()), THREAT, **settings)
    return result, {check.name: check.passed for check in result.checks}


class Wrapped(torch.nn.Module):
    """A network behind a function of its images, one of its logits, or both."""

    def __init__(self, net, before=None, after=None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        logits = self.net(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


class Backward(torch.autograd.Function):
    """The identity with a backward pass that multiplies by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None
