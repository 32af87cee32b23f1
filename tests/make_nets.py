"""Make the small trained networks of the tests: `PYTHONPATH=. python tests/make_nets.py`, a minute on one core.

    [ODENETS_TEST_NETS=FOLDER] python tests/make_nets.py [--seed 0] [--only plain,pooled]

Nets trained within a test differ from machine to machine, by more than rounding: training amplifies it. So the tests load
weights that are here once and for all (`tests/weights/NAME.pt`, float16, 15 to 70 kB each); this script says where they come
from. On another machine, or with another --seed, it makes others of the same kind. The tests must hold on those too: write
them to another folder, and run the suite with ODENETS_TEST_NETS set to it.
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from odenets.nets.fields import basic_layers
from odenets.nets.resnet import ODEResNet

FOLDER = Path(os.environ.get("ODENETS_TEST_NETS", Path(__file__).parent / "weights"))
TRAINING_IMAGES = 1400  # the other 397 are for the tests


def digits():
    """All images and labels, in an order of their own."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images / 16, dtype=torch.float32)[order, None], torch.tensor(data.target)[order]


def small(scheme="explicit", field="residual"):
    """`odenets.ode_resnet_small` with half its channels: a quarter of its weights, and of its cost."""
    return ODEResNet(basic_layers, (2, 3), (8, 16), 10, 1, scheme, field=field, stem_width=8)


def plain():
    """A convolutional net with batch normalisation, none of ours."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def pooled():
    """Digits have black corners: a max-pool there chooses among equals."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, 1, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def bare():
    """Two convolutions without any normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)
    )


def torchvision_resnet():
    """A user's torchvision ResNet for small grey images, with fewer channels and layers than its constructor makes."""
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    net.conv1, net.bn1, net.maxpool = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.Identity()
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    net.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
    net.layer2 = nn.Sequential(BasicBlock(8, 16, 2, shortcut), BasicBlock(16, 16))
    net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(16, 10)
    return net


# name: how it is built, epochs of training, whether on images that one step has attacked
NETS = {
    "explicit": (small, 12, False),
    "attacked": (small, 12, True),
    "ie_skip": (lambda: small("ie_skip(gamma=0.05)"), 12, False),
    "implicit": (lambda: small("implicit(tol=1e-2)"), 12, False),
    "plain": (plain, 5, False),
    "pooled": (pooled, 8, False),
    "bare": (bare, 6, False),
    "torchvision": (torchvision_resnet, 8, True),
}


def fit(net, epochs, attacked, seed):
    """Train in place, on images after one step of size 0.1 along the gradient if `attacked`."""
    x, y = digits()
    generator, batches = torch.Generator().manual_seed(seed), -(-TRAINING_IMAGES // 64)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINING_IMAGES, generator=generator).split(64):
            images = x[rows]
            if attacked:
                point = (images + 0.1 * (2 * torch.rand(images.shape, generator=generator) - 1)).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(net(point), y[rows]), point)
                images = (images + (point.detach() - images + 0.1 * gradient.sign()).clamp(-0.1, 0.1)).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(net(images), y[rows]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    return net.eval()


def main():
    """Train, say how well each knows its digits, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(NETS))
    arguments = parser.parse_args()
    x, y = (part[TRAINING_IMAGES:] for part in digits())
    for name in arguments.only.split(","):
        make, epochs, attacked = NETS[name]
        torch.manual_seed(arguments.seed)
        net = fit(make(), epochs, attacked, arguments.seed)
        halves = {key: value.half() if value.is_floating_point() else value for key, value in net.state_dict().items()}
        net.load_state_dict(halves)
        with torch.no_grad():
            print(f"{name}: accuracy {float((net(x).argmax(1) == y).double().mean()):.3f}", flush=True)
        FOLDER.mkdir(exist_ok=True)
        torch.save(halves, FOLDER / f"{name}.pt")


if __name__ == "__main__":
    main()
