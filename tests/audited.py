"""Small trained networks, and wrappers that make cheats of them, for the tests of the audit.

The weights are shipped (`make_nets.py` made them), so that every machine tests the same nets. What a test says must not hang
on their last digits all the same. ODENETS_TEST_JITTER=1e-6 multiplies each weight by 1 + 1e-6 times a normal number,
ODENETS_TEST_SEED=1 takes other noise there, other images, another generator and other random weights, ODENETS_TEST_NETS a
folder of other nets: the tests hold under each (`make test-perturbed`).
"""

import os
from functools import cache

import make_nets
import torch

import stability
from stability import Linf

THREAT = Linf(0.1)
JITTER, SEED = (float(os.environ.get(f"ODENETS_TEST_{name}", 0)) for name in ("JITTER", "SEED"))


def generator():
    return torch.Generator().manual_seed(int(SEED))


@cache
def held_out():
    """Images and labels that no network here was trained on."""
    return tuple(part[make_nets.TRAINING_IMAGES :].roll(-97 * int(SEED), 0) for part in make_nets.digits())


def sample(count=40):
    return tuple(part[:count] for part in held_out())


def accuracy(net):
    x, y = held_out()
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).double().mean())


@cache
def weights(name):
    """The shipped state dict of this name, in float32."""
    state, noise = torch.load(make_nets.FOLDER / f"{name}.pt", weights_only=True), generator()
    return {
        key: value.float() * (1 + JITTER * torch.randn(value.shape, generator=noise)) if value.is_floating_point() else value
        for key, value in state.items()
    }


def shipped(name, net=None):
    """A net with the shipped weights of this name, in eval mode; `net` instead of a new one, whose scheme is then its own."""
    net = net or make_nets.NETS[name][0]()
    net.load_state_dict(weights(name))
    return net.eval()


def trained(scheme="explicit", weights="explicit"):
    """A small net of ours with a scheme, whatever scheme its shipped weights were trained with."""
    return shipped(weights, make_nets.small(scheme))


def widened(state):
    """Weights of `make_nets.small` for `odenets.ode_resnet_small`: each channel twice, which computes the same logits."""
    wide = {}
    for key, value in state.items():
        if value.dim() > 1 and key != "stem.0.weight":
            value = value.repeat_interleave(2, 1) / 2  # each input comes twice
        wide[key] = value if key.startswith("head.4.") else value.repeat_interleave(2, 0)
    return wide


def untrained(scheme, field="residual"):
    """The same with random weights, and any field."""
    torch.manual_seed(int(SEED))
    return make_nets.small(scheme, field).eval()


def verdicts(net, images=None, **settings):
    """An audit, and {name of a check: its verdict}."""
    result = stability.audit(net, *(images or sample()), THREAT, **{"generator": generator(), **settings})
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
