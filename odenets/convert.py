"""A torchvision ResNet read as an ODE network: the same modules, its residual blocks integrated by a scheme."""
from copy import copy
from itertools import groupby

from torch import nn

from odenets.stage import ODEStage, stages


class Increment(nn.Module):
    """The autonomous field f(t, y) = block(y) - y, of which the block is one explicit Euler step with h = 1.

    Args:
        block: (B, ...) -> (B, ...) of the same shape; it must not write into its argument.
    """

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, t, y):
        """dy/dt at y; t is not used."""
        return self.block(y) - y


def convert(model, scheme="explicit", substeps=1):
    """Read a torchvision ResNet as an ODE network: each maximal run of shape-preserving blocks becomes one `ODEStage`.

    Blocks without a downsampling shortcut become fields f(t, y) = block(y) - y; everything else stays where it is, a
    replaced fc or stem and a subclass's own forward included. Explicit Euler with one substep gives the outputs and
    gradients of `model` up to rounding.

    The blocks end in a ReLU after the addition, so that the ReLU is part of the field: f(y) = relu(y + g(y)) - y, and where
    it is off f(y) = -y, a decay at rate 1. An implicit scheme solves with that f: implicit Euler with h = 1 is
    2z = y + relu(z + g(z)), which keeps z >= 0 and has a unique root where relu(z + g(z)) has a Lipschitz constant below 2;
    beyond it a nearby root may not exist, and the stage's `stats` say which samples were not solved.

    Args:
        model: A torchvision ResNet of BasicBlock or Bottleneck with its BatchNorm frozen (`model.eval()`); it keeps its
            forward and its state dict.
        scheme: Spec or `Scheme`, for all stages; `odenets.set_scheme` changes it later.
        substeps: Steps for each block, with h = 1 / substeps.

    Returns:
        A module of the type of `model` whose layers hold `ODEStage`s. Its modules are those of `model`, not copies: training,
        loading, train() and to() on either one are seen in both (take `copy.deepcopy(model)` first to keep them apart);
        what is replaced afterwards, such as fc, is replaced in one. In training mode every evaluation of a block moves its
        BatchNorm's statistics, and schemes that iterate refuse to run. Its attribute `key_of` gives for the name of every
        parameter and buffer of `model` the name that it has here.

    Raises:
        ValueError: Not such a ResNet, BatchNorm not frozen, no block to integrate, or a scheme or substeps out of range.
    """
    _check(model)
    net, moved = _twin(model), {}
    for name, layer in model._modules.items():
        if isinstance(layer, nn.Sequential):
            net._modules[name], blocks = _integrated(layer, scheme, substeps)
            moved |= {f"{name}.{old}": f"{name}.{new}" for old, new in blocks.items()}
    if not moved:
        raise ValueError(f"this {type(model).__name__} has no block without a downsampling shortcut, so nothing to integrate")
    net.key_of = {key: _renamed(key, moved) for key in _keys(model)}
    return net


def _check(model):
    # Here and not above: whoever holds a ResNet has paid for the import, which would double that of odenets.
    from torchvision.models.resnet import ResNet

    if not isinstance(model, ResNet):
        raise ValueError(f"convert takes a torchvision.models.ResNet of BasicBlock or Bottleneck blocks, got {type(model).__name__}; "
                         "take the bare model out of DataParallel, torch.compile or any other wrapper")
    if stages(model):
        raise ValueError(f"this {type(model).__name__} is converted already; odenets.set_scheme changes its scheme")
    for name, value in vars(model).items():
        if getattr(value, "__self__", None) is model:
            raise ValueError(f"{name} was replaced on this one {type(model).__name__}, and would go on running the unconverted "
                             f"network; define {name} in a subclass of torchvision.models.ResNet instead")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            why = "is in training mode; call model.eval() first" if module.training else "keeps no running statistics"
            raise ValueError(f"convert takes a ResNet with frozen BatchNorm, but {name}, a {type(module).__name__}, {why}")


def _twin(module):
    """The same module with containers of its own: changing the children or hooks of the one leaves the other as it is."""
    twin = copy(module)
    vars(twin).update({key: copy(value) for key, value in vars(module).items() if isinstance(value, (dict, set))})
    return twin


def _integrated(layer, scheme, substeps):
    """A twin of a Sequential with its runs of blocks as stages, and {name of a block: where it went}."""
    children, moved = {}, {}
    for integrable, run in groupby(layer._modules.items(), lambda child: _keeps_shape(child[1])):
        run = dict(run)
        if not integrable:
            children |= run
            continue
        stage = ODEStage([Increment(block) for block in run.values()], scheme, substeps=substeps)
        for module in (stage, stage.fields, *stage.fields):
            module.training = layer.training  # not train(): the blocks keep their modes
        first = next(iter(run))
        children[first] = stage
        moved |= {name: f"{first}.fields.{n}.block" for n, name in enumerate(run)}
    twin = _twin(layer)
    twin._modules = children
    return twin, moved


def _keeps_shape(block):
    from torchvision.models.resnet import BasicBlock, Bottleneck

    # The addition of the skip connection sees to it that the channels agree.
    return isinstance(block, (BasicBlock, Bottleneck)) and block.downsample is None and block.stride == 1


def _keys(model):
    for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from (key for key, _ in tensors)


def _renamed(key, moved):
    block = ".".join(key.split(".", 2)[:2])
    return moved.get(block, block) + key[len(block):]
