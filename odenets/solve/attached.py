"""Roots under transforms of torch.func (grad, vjp, jvp, vmap, nested as wanted): their derivatives, level by level.

A transform wraps tensors; rules for derivatives run where some of the wrappers are suspended or over. The root, the residual
and the samples pass through `torch.autograd.Function`s, which torch unwraps; what a field holds in its closure does not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import WrappedCtx
from torch._functorch.utils import unwrap_dead_wrappers
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from odenets.solve.transforms import bare, levels, lowered, mapped, mapping, maps, plain_dual_level, tangents

DUAL = -1  # beside the numbers of transforms, which begin at 1, and 0 for torch.autograd


def attached_at_levels(equation: Any, z: Tensor, samples: Sequence[Tensor], without: int | None) -> Tensor:
    """z with its derivatives under transforms of torch.func, each of which differentiates once, and plain autograd below.

    Level by level, the outermost first: z has the derivatives of the levels passed when the next one differentiates the
    residual at z, as if z were a constant to it.

    Args:
        equation: The `_Equation` that z solves.
        z: The root, a constant, (B, ...).
        samples: As in `root`.
        without: A level to leave out, or None.
    """
    r = equation.residual(z, *samples)
    active = [0] * bare(r).requires_grad + [DUAL] * plain_dual_level() + levels()
    if mapping():
        with torch.no_grad():
            blank = [torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (z, *samples)]
            equation.maps_closure = mapped(equation.residual(*blank))
    for count, level in enumerate(level for level in active if level != without):
        r = equation.residual(z, *samples) if count else r
        z = _Attached.apply(z, r, equation, level, *samples)
    return z


def attached_to_dual(equation: Any, z: Tensor, samples: Sequence[Tensor]) -> Tensor:
    """z with its tangents for dual numbers of torch.autograd.forward_ad; its derivatives for torch.autograd are there."""
    return _Attached.apply(z, equation.residual(z, *samples), equation, DUAL, *samples)


class _Attached(torch.autograd.Function):
    """The value z; at one level the derivatives of -J^-1 r, at all others those of z."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, r: Tensor, equation: Any, level: int, *samples: Tensor) -> Tensor:
        return z.clone()  # a transform may not see a view of an input

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, _, ctx.equation, ctx.level, *samples = inputs
        ctx.maps = _restored(ctx)
        here = (levels() or [0])[-1]
        ctx.backwards, ctx.forwards, ctx.unused = ctx.level == here, ctx.level == (here or DUAL), (None,) * len(samples)
        ctx.save_for_backward(z, *samples)
        ctx.save_for_forward(z, *samples)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        if g is None or not ctx.backwards:
            return g, None, None, None, *ctx.unused
        if ctx.equation.maps_closure and ctx.maps != _restored(ctx):
            raise RuntimeError(
                "the field holds tensors that torch.func.vmap maps over, and the gradient is taken outside the "
                "transforms around that vmap: take it with torch.func.grad or jacrev of the mapped function"
            )
        if ctx.level == 0 and torch.is_grad_enabled():
            raise RuntimeError(
                "torch.autograd differentiates an implicit step under a transform of torch.func once; for "
                "create_graph=True use torch.autograd alone, or torch.func.grad, vjp or jvp for all derivatives"
            )
        z, *samples = unwrap_dead_wrappers(ctx.saved_tensors)
        return None, ctx.equation.lowered().solve(z, samples, -g, True), None, None, *ctx.unused

    @staticmethod
    def jvp(ctx: Any, z_tangent: Any, r_tangent: Any, *_: Any) -> Tensor:
        tangent = r_tangent if ctx.forwards else z_tangent
        if tangent is None:
            return torch.zeros_like(ctx.saved_tensors[0])
        if not ctx.forwards:
            return tangent.clone()
        equation, tensors = ctx.equation.lowered(), unwrap_dead_wrappers(ctx.saved_tensors)
        if ctx.level == DUAL:
            z, *samples = tensors
            return equation.solve(z, samples, -r_tangent, False)
        # torch suspends all forward mode within this rule, but those of the levels around have to go on.
        z, *samples = (_Same.apply(tensor) for tensor in tensors)
        with tangents(True):
            value = equation.solve(z, samples, -r_tangent, False, without=ctx.level)
        return _Same.apply(value)


def _restored(ctx: Any) -> list[int]:
    """Levels of the vmaps that torch has set up anew around a rule for derivatives; tensors in a closure know the old ones."""
    depth = 0
    while isinstance(ctx, WrappedCtx):
        ctx, depth = ctx._pt_inner_ctx, depth + 1
    return maps()[-depth:] if depth else []


class _Same(torch.autograd.Function):
    """The identity: where forward mode is suspended it takes the tangents of the innermost level away, and no others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


class Lowered(TorchFunctionMode):
    """Within it torch functions see the tensors of a field without the wrappers of transforms that are suspended or over.

    A rule for derivatives runs where the transforms inside its own are one or the other.
    """

    # Of a pullback, whose graph hangs on such wrappers.
    bookkeeping: Any = torch.autograd.grad, torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in self.bookkeeping:
            args, kwargs = tree_map_only(torch.Tensor, lowered, (args, kwargs))
        return function(*args, **kwargs)
