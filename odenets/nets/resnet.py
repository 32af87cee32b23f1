"""The paper's residual networks, built of ODE stages: pre-activation, GroupNorm(1, C), images in [0, 1] taken as they are."""

from collections.abc import Mapping, Sequence
from inspect import unwrap
from pathlib import Path
from typing import Any

from torch import nn

from odenets.errors import InputError, sentence
from odenets.nets import hub
from odenets.nets.fields import Field as FieldSpec
from odenets.nets.fields import Transition, basic_layers, bottleneck_layers, get_field
from odenets.nets.layers import LAYERS, Layers
from odenets.nets.stage import ODEStage, stages
from odenets.schemes import Scheme, Tableau
from odenets.types import Images, Logits

ARCHITECTURE = (
    "depths",
    "widths",
    "num_classes",
    "in_channels",
    "scheme",
    "substeps",
    "field",
    "stem_width",
    "stem_stride",
)


class ODEResNet(nn.Module):
    """Stem, stages, head. Within a stage, every block that keeps the shape is a field of one `ODEStage`.

    The stem's GroupNorm matters: block Jacobians grow as 1/||y||, and without it the first stage can leave implicit Euler
    without a nearby root.

    Args:
        layers: `basic_layers` or `bottleneck_layers`.
        depths: Blocks for each stage, the shape-changing first one included where there is one.
        widths: Channels for each stage; stages after the first halve the resolution.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        scheme: Spec or `Scheme`, for all stages.
        substeps: Steps for each block.
        field: Spec of what is integrated, "residual" (the paper's block) or another of `odenets.list_fields()`.
        stem_width, stem_stride: Channels of the stem, and of how many pixels along each axis it keeps one.
    """

    def __init__(
        self,
        layers: Layers,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        scheme: str | Scheme | Tableau = "explicit",
        substeps: int = 1,
        field: str | FieldSpec = "residual",
        stem_width: int = 16,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        field = get_field(field)
        self.architecture = {
            "layers": next((name for name, known in LAYERS.items() if known is unwrap(layers)), None),
            "depths": [*depths],
            "widths": [*widths],
            "num_classes": num_classes,
            "in_channels": in_channels,
            "field": str(field),
            "stem_width": stem_width,
            "stem_stride": stem_stride,
        }
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_width, 3, stem_stride, 1, bias=False), nn.GroupNorm(1, stem_width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        inputs = stem_width
        for index, (depth, width) in enumerate(zip(depths, widths)):
            stride = 1 if index == 0 else 2
            if stride != 1 or inputs != width:
                blocks.append(Transition(layers, inputs, width, stride))
                depth -= 1
            blocks.append(ODEStage([field.build(layers, width) for _ in range(depth)], scheme, substeps=substeps))
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.GroupNorm(1, inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
        )

    def forward(self, x: Images) -> Logits:
        """Logits (B, num_classes) of images (B, in_channels, H, W) in [0, 1]."""
        return self.head(self.blocks(self.stem(x)))

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
        """Write config.json and model.safetensors into a folder, as the Hugging Face hub has them; no code is in it.

        Args:
            folder: Made where missing.
            about: What else shall stand in the configuration under this name, as JSON.

        Raises:
            InputError: Layers that are neither basic nor bottleneck, or stages of several schemes; `MissingExtra` without the
                extra hub.
        """
        ways = {(str(stage.scheme), stage.substeps) for stage in stages(self).values()}
        if len(ways) > 1 or self.architecture["layers"] is None:
            what = "layers of their own" if len(ways) == 1 else f"the schemes {', '.join(sorted(name for name, _ in ways))}"
            raise InputError(
                f"a network that is shared has one scheme and {' or '.join(LAYERS)} layers; these stages have {what}"
            )
        (scheme, substeps), *_ = ways
        hub.write(folder, {**self.architecture, "scheme": scheme, "substeps": substeps, "about": about}, self.state_dict())

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> "ODEResNet":
        """The network that `save_pretrained` wrote, on the CPU, in eval mode.

        Args:
            name: A folder, for which no connection is needed, or USER/NAME on the Hugging Face hub.
            revision: Branch, tag or commit there.

        Raises:
            InputError: Nothing there, damaged, or weights of another architecture; `MissingExtra` without the extra hub.
        """
        config, weights = hub.read(name, revision)
        try:
            net = cls(LAYERS[config.pop("layers")], **{key: config[key] for key in ARCHITECTURE})
            net.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
            raise InputError(f"{name} cannot be built by this version of odenets: {sentence(error)}") from None
        return net.eval()


def ode_resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    scheme: str | Scheme | Tableau = "explicit",
    substeps: int = 1,
    field: str | FieldSpec = "residual",
) -> ODEResNet:
    """The paper's ResNet-18, 787,290 parameters for 10 classes and 3 channels; 5 blocks are integrated."""
    return ODEResNet(basic_layers, (2, 2, 2, 2), (16, 32, 64, 128), num_classes, in_channels, scheme, substeps, field)


def ode_resnet34(
    num_classes: int = 10,
    in_channels: int = 3,
    scheme: str | Scheme | Tableau = "explicit",
    substeps: int = 1,
    field: str | FieldSpec = "residual",
) -> ODEResNet:
    """The paper's ResNet-34, 1,420,442 parameters for 10 classes and 3 channels; 13 blocks are integrated."""
    return ODEResNet(basic_layers, (3, 4, 6, 3), (16, 32, 64, 128), num_classes, in_channels, scheme, substeps, field)


def ode_resnet50(
    num_classes: int = 10,
    in_channels: int = 3,
    scheme: str | Scheme | Tableau = "explicit",
    substeps: int = 1,
    field: str | FieldSpec = "residual",
) -> ODEResNet:
    """The paper's ResNet-50 with bottlenecks, 2,867,674 parameters; 12 blocks are integrated."""
    return ODEResNet(bottleneck_layers, (3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels, scheme, substeps, field)


def ode_resnet_small(
    num_classes: int = 10,
    in_channels: int = 1,
    scheme: str | Scheme | Tableau = "explicit",
    substeps: int = 1,
    field: str | FieldSpec = "residual",
) -> ODEResNet:
    """Two stages of two integrated blocks, widths 16 and 32: minutes on a CPU for 8x8 digits."""
    return ODEResNet(basic_layers, (2, 3), (16, 32), num_classes, in_channels, scheme, substeps, field)


def ode_resnet_small_stride2(
    num_classes: int = 10,
    in_channels: int = 3,
    scheme: str | Scheme | Tableau = "explicit",
    substeps: int = 1,
    field: str | FieldSpec = "residual",
) -> ODEResNet:
    """`ode_resnet_small` behind a stem of stride 2: minutes on a CPU for images of 28x28 or 32x32."""
    return ODEResNet(basic_layers, (2, 3), (16, 32), num_classes, in_channels, scheme, substeps, field, stem_stride=2)


MODELS = {
    "small": ode_resnet_small,
    "small-stride2": ode_resnet_small_stride2,
    "resnet18": ode_resnet18,
    "resnet34": ode_resnet34,
    "resnet50": ode_resnet50,
}
