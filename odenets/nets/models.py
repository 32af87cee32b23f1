"""Every network by name: `get_model` reads a spec, a user's own too."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from odenets.errors import InputError
from odenets.nets.convert import convert, is_resnet
from odenets.nets.fields import Field
from odenets.nets.resnet import MODELS
from odenets.nets.stage import stages
from odenets.own import Own, find_own, is_own
from odenets.schemes import Scheme, Tableau
from odenets.specs import canonical

TAKES = ("num_classes", "in_channels", "scheme", "substeps", "field")  # a model, by these names


@dataclass(frozen=True)
class Model:
    """A network by its spec, `str` gives it. make: what builds it, called by the names of `TAKES`."""

    spec: str
    make: Callable[..., nn.Module]

    def build(
        self,
        num_classes: int,
        in_channels: int,
        scheme: str | Scheme | Tableau = "explicit",
        substeps: int = 1,
        field: str | Field = "residual",
    ) -> nn.Module:
        """A new network on the CPU, its weights drawn from torch's global generator."""
        return self.make(num_classes=num_classes, in_channels=in_channels, scheme=scheme, substeps=substeps, field=field)

    def __str__(self) -> str:
        return self.spec


def get_model(spec: str) -> Model:
    """The model that a spec names: one of `odenets.MODELS`, or a user's own.

    Args:
        spec: "resnet18", or "path/to/file.py:NAME" with NAME a function of num_classes, in_channels, scheme, substeps and
            field, called by these names, that returns a module of `ODEStage`s; or a torchvision or timm ResNet, or what returns
            one, such as "torchvision.models:resnet18(weights=DEFAULT)". That is read by `convert`, after its first convolution
            and its fc were made to fit channels and classes; it has its own fields.

    Raises:
        InputError: No such model; code that fails, with the user's line; a callable of another signature.
    """
    if is_own(spec):
        return _own(find_own(spec, "model"))
    if spec not in MODELS:
        raise InputError(
            f"unknown model {spec!r}; choose from {', '.join(MODELS)}, or package.module:NAME or path/to/file.py:NAME"
        )
    return Model(spec, MODELS[spec])


def _own(part: Own) -> Model:
    if isinstance(part.found, nn.Module):
        part.settings({})
        return Model(part.spec, lambda **given: _converted(part.spec, copy.deepcopy(part.found), **given))
    converted = not {"scheme", "substeps", "field"} & part.takes.keys()
    declared = part.declared(TAKES, optional=TAKES if converted else ())
    given = part.settings(declared)
    spec = canonical(part.spec, {key: (given.get(key, default), default) for key, default in declared.items()})
    if not converted:

        def make(**filled: Any) -> nn.Module:
            net = part.call(**filled, **given)
            if not isinstance(net, nn.Module) or not stages(net):
                raise InputError(f"{spec} gave a {type(net).__name__} without an ODEStage, which no scheme could integrate")
            return net
    else:

        def make(**filled: Any) -> nn.Module:
            known = {key: filled[key] for key in ("num_classes", "in_channels") if key in part.takes}
            return _converted(spec, part.call(**known, **given), **filled)

    return Model(spec, make)


def _converted(
    spec: str,
    net: nn.Module,
    num_classes: int,
    in_channels: int,
    scheme: str | Scheme | Tableau,
    substeps: int,
    field: str | Field,
) -> nn.Module:
    """A ResNet that fits channels and classes, read by `convert`."""
    if not is_resnet(net):
        raise InputError(
            f"{spec} gave a {type(net).__name__}; a model is a function of {', '.join(TAKES)} or a torchvision or timm ResNet"
        )
    if str(field) != "residual":
        raise InputError(f"{spec} is a ResNet with fields of its own, so that the field {field} cannot be had; leave it out")
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != in_channels:
        net.set_submodule(name, _with_channels(first, in_channels))
    if isinstance(net.fc, nn.Linear) and net.fc.out_features != num_classes:
        net.fc = nn.Linear(net.fc.in_features, num_classes)
    return convert(net.eval(), scheme, substeps)


@torch.no_grad()
def _with_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution of other channels that answers to grey images as this one does."""
    if conv.groups > 1:
        raise InputError(f"the first convolution takes {conv.in_channels} channels in groups, and the images have {channels}")
    names = ("kernel_size", "stride", "padding", "dilation")
    other = nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **{name: getattr(conv, name) for name in names})
    other.weight.copy_(conv.weight.sum(1, keepdim=True).expand_as(other.weight) / channels)
    if conv.bias is not None and other.bias is not None:
        other.bias.copy_(conv.bias)
    return other
