"""A ResNet of torchvision or timm read as an ODE network: the same modules, its residual blocks integrated by a scheme."""

import sys
from collections.abc import Iterator
from copy import copy
from itertools import groupby
from typing import Any, TypeVar

from torch import nn

from odenets.errors import InputError
from odenets.nets.guard import Guard
from odenets.nets.stage import ODEStage, stages
from odenets.schemes import Scheme, Tableau
from odenets.types import State, Time

Module = TypeVar("Module", bound=nn.Module)


class Increment(nn.Module):
    """The autonomous field f(t, y) = block(y) - y, of which the block is one explicit Euler step with h = 1.

    Args:
        block: (B, ...) -> (B, ...) of the same shape; where it writes into its argument it is handed copies.
        reads_only: The block is known not to: not even the first evaluation of a pass needs a copy.
    """

    autonomous = True
    takes_guard = True  # the block is guarded, not the whole: y is needed once more behind it

    def __init__(self, block: nn.Module, reads_only: bool = False) -> None:
        super().__init__()
        self.block, self.reads_only = block, reads_only

    def forward(self, t: Time, y: State, guard: Guard | None = None) -> State:
        """dy/dt at y; t is not used. `guard`: the `Guard` of the pass, if this is part of one."""
        guard = guard or Guard()
        if self.reads_only:
            guard.trust(self.block)
        return guard(self.block, y) - y


def convert(model: Module, scheme: str | Scheme | Tableau = "explicit", substeps: int = 1) -> Module:
    """Read a ResNet of torchvision or timm as an ODE network: maximal runs of shape-preserving blocks become `ODEStage`s.

    Blocks without a downsampling shortcut become fields f(t, y) = block(y) - y; everything else stays where it is, a
    replaced fc or stem and a subclass's own forward included. Explicit Euler with one substep gives the outputs and
    gradients of `model` up to rounding.

    The blocks end in a ReLU after the addition, so that the ReLU is part of the field: f(y) = relu(y + g(y)) - y, and
    where it is off f(y) = -y, a decay at rate 1. Implicit Euler then solves (1 + h) z = y + h relu(z + g(z)): z >= 0
    stays, and the root is unique where z -> relu(z + g(z)) has a Lipschitz constant below 1 + 1/h. Beyond, as may
    happen in the first layer at h = 1, there may be none nearby; the stage's `stats` say so for each sample, and more
    substeps help.

    Args:
        model: A ResNet of torchvision or timm, of BasicBlock or Bottleneck, with its BatchNorm frozen (`model.eval()`); it
            keeps its forward and its state dict.
        scheme: Spec or `Scheme`, for all stages; `odenets.set_scheme` changes it later.
        substeps: Steps for each block, with h = 1 / substeps.

    Returns:
        A module of the type of `model` whose layers hold `ODEStage`s. Its modules are those of `model`, not copies:
        training, loading, train() and to() on either one are seen in both (convert `copy.deepcopy(model)` to keep them
        apart); what is replaced afterwards, such as fc, is replaced in one. In training mode every evaluation of a
        block moves its BatchNorm's statistics, and schemes that iterate refuse to run. The attribute `key_of` maps the
        name of every parameter and buffer of `model` to its name here.

    Raises:
        ValueError: Not such a ResNet, BatchNorm not frozen, no block to integrate, scheme or substeps out of range.
    """
    _check(model)
    net = _twin(model)
    moved: dict[str, str] = {}
    for name, layer in model._modules.items():
        if isinstance(layer, nn.Sequential):
            twin, blocks = _integrated(layer, scheme, substeps)
            if blocks:
                net._modules[name] = twin
                moved |= {f"{name}.{old}": f"{name}.{new}" for old, new in blocks.items()}
    if not moved:
        raise InputError(
            f"nothing to integrate: this {type(model).__name__} has no BasicBlock or Bottleneck without a downsampling shortcut"
        )
    vars(net)["key_of"] = {key: _renamed(key, moved) for key in _keys(model)}
    return net


def is_resnet(model: object) -> bool:
    """Whether `convert` knows the kind of a model; its other conditions are its own."""
    return isinstance(model, tuple(resnet for resnet, *_ in _families()))


def _families() -> Iterator[tuple[type, type, type]]:
    """(ResNet, BasicBlock, Bottleneck) of each library that is loaded: whoever holds a ResNet of one has loaded it."""
    for name in ("torchvision.models.resnet", "timm.models.resnet"):
        if module := sys.modules.get(name):
            yield module.ResNet, module.BasicBlock, module.Bottleneck


def _blocks() -> tuple[Any, ...]:
    return tuple(block for _, *blocks in _families() for block in blocks)


def _check(model: nn.Module) -> None:
    kind = type(model).__name__
    if not is_resnet(model):
        raise InputError(
            f"convert takes a torchvision.models.ResNet, or timm's, of BasicBlock or Bottleneck blocks, got {kind}; "
            "where that wraps one (DataParallel, torch.compile), give the model inside"
        )
    if stages(model):
        raise InputError(f"this {kind} is converted already; odenets.set_scheme changes its scheme")
    for name in {"forward", "_forward_impl"} & set(vars(model)):
        raise InputError(
            f"{name} was replaced on this one {kind} and may run the unconverted network; define it in a "
            "subclass of torchvision.models.ResNet instead"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            why = "in training mode: call model.eval() first" if module.training else "without running statistics"
            raise InputError(f"convert takes a ResNet with frozen BatchNorm: {name} is a {type(module).__name__} {why}")


def _twin(module: Module) -> Module:
    """A module with the same parameters and buffers, whatever to() does to them, but children and hooks of its own."""
    twin = copy(module)
    own = {key: copy(value) for key, value in vars(module).items() if isinstance(value, dict)}
    vars(twin).update({key: value for key, value in own.items() if key not in ("_parameters", "_buffers")})
    return twin


def _integrated(layer: nn.Sequential, scheme: str | Scheme | Tableau, substeps: int) -> tuple[nn.Sequential, dict[str, str]]:
    """A twin of a Sequential with its runs of blocks as stages, and {name of a block: where it went}."""
    children: dict[str, nn.Module] = {}
    moved: dict[str, str] = {}
    every = ((name, child) for name, child in layer._modules.items() if child is not None)  # one may stand there twice
    for integrable, members in groupby(every, lambda child: _keeps_shape(child[1])):
        run = dict(members)
        if not integrable:
            children |= run
            continue
        stage = ODEStage([Increment(block, _reads_only(block)) for block in run.values()], scheme, substeps=substeps)
        for module in (stage, stage.fields, *stage.fields):
            module.training = layer.training  # not train(): the blocks keep their modes
        first = next(iter(run))  # the stage takes the name of its first block, so that no other child is renamed
        children[first] = stage
        moved |= {name: f"{first}.fields.{n}.block" for n, name in enumerate(run)}
    twin = _twin(layer)
    twin._modules = children
    return twin, moved


def _keeps_shape(block: nn.Module) -> bool:
    # The addition of the skip connection sees to it that the channels agree.
    return isinstance(block, _blocks()) and block.downsample is None and block.stride == 1


def _reads_only(block: nn.Module) -> bool:
    """Whether a block runs its library's own forward, whose in-place ReLUs act on what its convolutions returned."""
    own = type(block).forward in [kind.forward for kind in _blocks()] and "forward" not in vars(block)
    first = block.get_submodule("conv1")
    return own and type(first) is nn.Conv2d and not (block._forward_pre_hooks or first._forward_pre_hooks)


def _keys(model: nn.Module) -> Iterator[str]:
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from (key for key, _ in tensors)


def _renamed(key: str, moved: dict[str, str]) -> str:
    block = ".".join(key.split(".", 2)[:2])
    return moved.get(block, block) + key[len(block) :]
