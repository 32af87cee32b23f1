"""What every attack asks of a network, images and labels, and the noise that belongs to an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stability.errors import InputError
from stability.types import Flags, Images, Indices, Labels, Logits, Net

ROUNDING = 1e-6  # beyond [0, 1]: what a resize or a change of precision leaves behind


def check_images(x: Any, y: Any) -> Images:
    """The images, clipped to [0, 1] where they lie outside by rounding, up to 1e-6: the ball is then that of the clipped ones.

    Refuses what is no batch of images in [0, 1] with its labels.
    """
    if not isinstance(x, torch.Tensor) or not x.dtype.is_floating_point or x.dim() < 2 or not len(x):
        found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise InputError(f"images must be a floating-point tensor (B, ...) with B >= 1, got {found}")
    low, high = (float(value) for value in x.detach().aminmax())
    excess = max(-low, high - 1)
    if not excess <= ROUNDING:
        raise InputError(
            f"images must lie in [0, 1], got [{low:.9g}, {high:.9g}], {excess:.3g} beyond (up to "
            f"{ROUNDING:g} counts as rounding and is clipped): put the normalisation into the model"
        )
    if not isinstance(y, torch.Tensor) or y.shape != x.shape[:1] or y.dtype != torch.int64 or y.device != x.device:
        found = f"{y.dtype} {tuple(y.shape)} on {y.device}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise InputError(f"labels must be int64, one for each of the {len(x)} images and on their device, got {found}")
    return x if excess <= 0 else x.detach().clamp(0, 1)


def check_logits(logits: Any, y: Labels, trusted: Flags | None = None) -> None:
    """Refuse what is no tensor of logits, a wrong shape, values that tell no class, and labels that the logits know nothing of.

    Values are looked at where `trusted`. Single classes may be -inf, masked; NaN, +inf and an image without a class may not.
    """
    if not isinstance(logits, torch.Tensor) or not logits.dtype.is_floating_point:
        found = logits.dtype if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"the network must return a floating-point tensor of logits, got {found}")
    if logits.dim() != 2 or len(logits) != len(y):
        raise InputError(f"the network must return logits ({len(y)}, classes), got shape {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise InputError("the network must tell at least 2 classes apart, its logits have 1: nothing could be misclassified")
    held = logits if trusted is None else logits[trusted]
    for bad, name in ((torch.isnan(held), "NaN"), (held == torch.inf, "+Inf")):
        if bool(bad.any()):
            raise InputError(f"the logits hold {name}: check the weights")
    if bool((held == -torch.inf).all(1).any()):
        raise InputError("the logits of an image are all -Inf: no class is left for it")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        raise InputError(f"labels must lie in 0 to {logits.shape[1] - 1}, theirs reach from {low} to {high}")


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")


def identities(indices: Any, x: Images) -> Indices:
    """(B,) on the host, the identity of each image: `indices`, or by default its position."""
    indices = torch.arange(len(x)) if indices is None else torch.as_tensor(indices).cpu()
    if indices.shape != (len(x),) or indices.dtype.is_floating_point:
        raise InputError(
            f"indices must be whole numbers, one for each of the {len(x)} images, got {indices.dtype} {tuple(indices.shape)}"
        )
    return indices


def indexed(call: Any) -> Any:
    """Mark a function as one that takes `indices`, the identity of each image."""
    call.takes_indices = True
    return call


def takes_indices(call: Any) -> bool:
    """Whether a net or an attack says that it takes `indices`, by its attribute `takes_indices`.

    A functools.partial says what its function does, unless it has been given them.
    """
    if isinstance(call, partial):
        return takes_indices(call.func) and "indices" not in call.keywords
    return getattr(call, "takes_indices", False)


def told(call: object, indices: Indices) -> dict[str, Indices]:
    """What a net or an attack is given beside its data: `indices` where it says that it takes them."""
    return {"indices": indices} if takes_indices(call) else {}


def evaluated(net: Net, x: Images) -> Logits:
    """net(x), x unharmed: networks begin with in-place layers, or normalise their images where they lie."""
    return net(x.clone())


def split(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The parts of several tensors, `size` rows at once."""
    return zip(*(tensor.split(size) for tensor in tensors))


@contextmanager
def evaluating(net: object) -> Iterator[Any]:
    """Within the context a module and its submodules are in eval mode; afterwards each is in the mode it was in."""
    modes = {module: module.training for module in net.modules()} if isinstance(net, nn.Module) else {}
    try:
        if isinstance(net, nn.Module):
            net.eval()
        yield net
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def attacking(net: object) -> Iterator[None]:
    """`evaluating`, with gradients to be had whatever the mode outside."""
    with evaluating(net), torch.inference_mode(False), torch.enable_grad():
        yield
