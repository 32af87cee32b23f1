"""Which differentiation is under way around a call: the one place that asks torch's internals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch


def transforming() -> bool:
    """Whether a transform of torch.func (vjp, jvp, grad, ...) is active; autograd.grad cannot run inside it."""
    return torch._C._are_functorch_transforms_active()


def dual_level() -> bool:
    """Whether dual numbers of torch.autograd.forward_ad are active."""
    return torch.autograd.forward_ad._current_level >= 0


def recording() -> bool:
    """Whether somebody may differentiate what is computed here, so that nothing is overwritten."""
    return torch.is_grad_enabled() or transforming() or dual_level()


def _stack(*kinds: Any) -> list[int]:
    return [entry.level() for entry in _functorch.get_interpreter_stack() or () if entry.key() in kinds]


def levels() -> list[int]:
    """Numbers of the active transforms that differentiate (vjp, grad, jvp, ...), the outermost first."""
    return _stack(_functorch.TransformType.Grad, _functorch.TransformType.Jvp)


def plain_dual_level() -> bool:
    """Whether dual numbers are active that no transform of torch.func has made."""
    return dual_level() and not _stack(_functorch.TransformType.Jvp)


def maps() -> list[int]:
    """Numbers of the active torch.func.vmap, the outermost first."""
    return _stack(_functorch.TransformType.Vmap)


def mapping() -> bool:
    """Whether torch.func.vmap is active: conditions on values then have to look behind its wrappers."""
    return transforming() and bool(maps())


def mapped(tensor: Tensor) -> bool:
    """Whether a tensor has an axis that torch.func.vmap hides."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def bare(tensor: Tensor) -> Tensor:
    """The tensor inside all wrappers of transforms; axes that vmap hides come first."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        axis = _functorch.maybe_get_bdim(tensor) if _functorch.is_batchedtensor(tensor) else 0
        tensor = _functorch.get_unwrapped(tensor).movedim(axis, 0) if axis else _functorch.get_unwrapped(tensor)
    return tensor


def lowered(tensor: Tensor) -> Tensor:
    """The tensor without wrappers of vjp, jvp and grad that are over, or at levels above the current one."""
    current = _functorch.maybe_current_level() or 0
    while _functorch.is_gradtrackingtensor(tensor) and not 0 < _functorch.maybe_get_level(tensor) <= current:
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def everywhere(mask: Tensor) -> bool:
    """bool(mask.all()), over what vmap hides too."""
    return bool((bare(mask) if transforming() else mask).all())


def anywhere(mask: Tensor) -> bool:
    """bool(mask.any()), over what vmap hides too."""
    return bool((bare(mask) if transforming() else mask).any())


def count(mask: Tensor) -> int:
    """Rows where a mask (rows,) holds; over what vmap hides too, whether there are any."""
    return int(anywhere(mask)) if mapping() else int(mask.sum())


def over_maps(tensor: Tensor, combine: Callable[..., Tensor]) -> Tensor:
    """A tensor (B,) without wrappers; what vmap hides is combined into one figure for each sample."""
    tensor = bare(tensor)
    return tensor if tensor.dim() < 2 else combine(tensor.flatten(0, -2), 0)


@contextmanager
def tangents(wanted: bool) -> Iterator[None]:
    """Whether forward mode records within the context."""
    before = torch._C._is_fwd_grad_enabled()
    torch._C._set_fwd_grad_enabled(wanted)
    try:
        yield
    finally:
        torch._C._set_fwd_grad_enabled(before)
