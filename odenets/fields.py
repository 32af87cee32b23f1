"""Vector fields f(t, y) of residual networks: pre-activation blocks without their skip connection."""
from torch import nn


def _norm_relu(channels):
    return [nn.GroupNorm(1, channels), nn.ReLU()]


def basic_layers(inputs, outputs, stride=1):
    """GroupNorm-ReLU-conv3x3, twice, no biases; the stride sits on the first convolution."""
    return nn.Sequential(*_norm_relu(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                         *_norm_relu(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False))


def bottleneck_layers(inputs, outputs, stride=1, expansion=4):
    """GroupNorm-ReLU-conv, three times, 1x1, 3x3, 1x1; the stride sits on the 3x3."""
    width = outputs // expansion
    return nn.Sequential(*_norm_relu(inputs), nn.Conv2d(inputs, width, 1, bias=False),
                         *_norm_relu(width), nn.Conv2d(width, width, 3, stride, 1, bias=False),
                         *_norm_relu(width), nn.Conv2d(width, outputs, 1, bias=False))


class Block(nn.Module):
    """An autonomous field f(t, y) = layers(y) with as many channels out as in.

    Args:
        layers: `basic_layers` or `bottleneck_layers`.
        channels: Channels of the state.
    """

    def __init__(self, layers, channels):
        super().__init__()
        self.layers = layers(channels, channels)

    def forward(self, t, y):
        """dy/dt at (B, channels, H, W); t is not used."""
        return self.layers(y)


class Transition(nn.Module):
    """The first block of a stage where the shape changes: shortcut(y) + layers(y), explicit under every scheme.

    Args:
        layers: `basic_layers` or `bottleneck_layers`.
        inputs, outputs: Channels before and after.
        stride: Of the first (basic) or 3x3 (bottleneck) convolution, and of the 3x3 projection shortcut.
    """

    def __init__(self, layers, inputs, outputs, stride):
        super().__init__()
        self.layers = layers(inputs, outputs, stride)
        self.shortcut = nn.Sequential(*_norm_relu(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))

    def forward(self, y):
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return self.shortcut(y) + self.layers(y)
