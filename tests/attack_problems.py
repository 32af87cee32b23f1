"""Small networks and images that the tests of attacks share."""

import torch


def linear_net(dtype=torch.float64, features=12, classes=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(features, classes)).to(dtype)


def conv_net(dtype=torch.float32, classes=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, classes)
    ).to(dtype)


def images(count=16, shape=(1, 3, 4), seed=1, dtype=torch.float64, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def margins(net, x, y):
    logits = net(x)
    right = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - right[:, 0]).detach()


def robust(net, x, y):
    with torch.no_grad():
        return int((net(x).argmax(1) == y).sum())


def hilly_net(classes=5, seed=0):
    """A smooth net whose loss has many hills, so that attacks differ."""
    torch.manual_seed(seed)
    return (
        torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(12, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, classes),
        )
        .to(torch.float64)
        .apply(_steeper)
    )


def _steeper(module):
    if isinstance(module, torch.nn.Linear):
        module.weight.data *= 3
