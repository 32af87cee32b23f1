"""The layers of the paper's blocks, as lists and sequences of torch modules."""

from collections.abc import Callable

from torch import nn

Layers = Callable[..., nn.Sequential]  # (inputs, outputs, stride=1), such as `basic_layers`


def norm_relu(channels: int) -> list[nn.Module]:
    """The list GroupNorm with one group, ReLU."""
    return [nn.GroupNorm(1, channels), nn.ReLU()]


def basic_layers(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """GroupNorm-ReLU-conv3x3, twice, no biases; the stride sits on the first convolution."""
    return nn.Sequential(
        *norm_relu(inputs),
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        *norm_relu(outputs),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
    )


def bottleneck_layers(inputs: int, outputs: int, stride: int = 1, expansion: int = 4) -> nn.Sequential:
    """GroupNorm-ReLU-conv, three times, 1x1, 3x3, 1x1; the stride sits on the 3x3."""
    width = outputs // expansion
    return nn.Sequential(
        *norm_relu(inputs),
        nn.Conv2d(inputs, width, 1, bias=False),
        *norm_relu(width),
        nn.Conv2d(width, width, 3, stride, 1, bias=False),
        *norm_relu(width),
        nn.Conv2d(width, outputs, 1, bias=False),
    )


LAYERS = {"basic": basic_layers, "bottleneck": bottleneck_layers}  # by the names that a shared network says
