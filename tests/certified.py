"""What hunts for a broken certificate: fields and pairs of states that an ascent drives apart."""

import torch

import odenets

SHAPE = (4, 2, 2)


def field(spec, gain=1.0, seed=0, channels=SHAPE[0]):
    """A field in float64 with random weights and biases."""
    torch.manual_seed(seed)
    module = odenets.get_field(spec).build(odenets.fields.basic_layers, channels).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(gain).add_(0.3 * torch.randn_like(parameter) if parameter.dim() == 1 else 0)
    return module


def size(v, p):
    return torch.linalg.vector_norm(v.flatten(1), p, dim=1)


def worst_ratio(step, p=2, shape=SHAPE, count=60, rounds=40, seed=0):
    """The largest ||step(x + d) - step(x)|| / ||d|| that an ascent in x and d finds, over pairs near and far."""
    generator = torch.Generator().manual_seed(seed)
    x, d = torch.randn(2, count, *shape, generator=generator, dtype=torch.float64)
    d = d * torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64).mul(1.5).sub(1).exp()
    best, rate = torch.zeros(count, dtype=torch.float64), 0.5
    for _ in range(rounds):
        x, d = x.detach().requires_grad_(), d.detach().requires_grad_()
        ratio = size(step(x + d) - step(x), p) / size(d, p)
        best = torch.maximum(best, ratio.detach())
        gradients = torch.autograd.grad(ratio.clamp_min(1e-12).log().sum(), (x, d))
        with torch.no_grad():  # steps as long as d, and shorter and shorter
            x, d = (
                v + rate * size(d, 2).view(-1, 1, 1, 1) * g / size(g, 2).clamp_min(1e-30).view(-1, 1, 1, 1)
                for v, g in zip((x, d), gradients)
            )
        rate *= 0.93
    return best.max().item()
