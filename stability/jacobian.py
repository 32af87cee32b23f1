"""The Jacobian of a map at a state, never formed: products with it and with its transpose, batched over samples.

Knows plain callables only. A stage of a network is one; so is the field of a block at a fixed time.
"""
import warnings
from functools import cache

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator


def jacobian(f, y, chunk=32):
    """The Jacobian of f at one sample, as a linear operator.

    Args:
        f: (B, ...) -> (B, ...) of the same shape, each sample on its own; a module or an `ODEStage` too.
        y: One state with its batch axis, (1, ...), float32 or float64, on any device.
        chunk: Columns that `matmat` and `rmatmat` handle in one call, by repeating y along the batch.

    Returns:
        scipy `LinearOperator` (n, n), n the entries of a sample, in the dtype of y; host arrays in and out. `matvec` is
        J v in forward mode, `rmatvec` J^T v in reverse mode. Parameters receive no gradients.

    Raises:
        ValueError: y is not one sample, not floating point or not finite; f changes the shape or gives NaN or Inf.
    """
    _check_state(y)
    if len(y) != 1:
        raise ValueError(f"jacobian takes one sample with its batch axis, got shape {tuple(y.shape)}; use y[i:i + 1]")
    reverse_product(f, y)  # refuses a bad f now rather than at the first product
    return _Jacobian(f, y, chunk)


class _Jacobian(LinearOperator):
    """Products of dense blocks of columns with the Jacobian and its transpose."""

    def __init__(self, f, y, chunk):
        n = y.numel()
        super().__init__(torch.empty(0, dtype=y.dtype).numpy().dtype, (n, n))
        self.f, self.y, self.chunk = f, y.detach(), chunk

    def _matvec(self, v):
        return self._columns(forward_product, v.reshape(-1, 1))[:, 0]

    def _rmatvec(self, v):
        return self._columns(reverse_product, v.reshape(-1, 1))[:, 0]

    def _matmat(self, V):
        return self._columns(forward_product, V)

    def _rmatmat(self, V):
        return self._columns(reverse_product, V)

    def _columns(self, product, V):
        if np.iscomplexobj(V):
            return self._columns(product, V.real) + 1j * self._columns(product, V.imag)
        parts = []
        for start in range(0, V.shape[1], self.chunk):
            rows = torch.as_tensor(np.ascontiguousarray(V[:, start:start + self.chunk].T)).to(self.y)
            states = self.y.expand(len(rows), *self.y.shape[1:]).contiguous()
            parts.append(product(self.f, states)(rows).cpu().numpy().T)
        return np.concatenate(parts, 1) if parts else np.empty(V.shape, self.dtype)


def reverse_product(f, y):
    """v -> J^T v for each sample: y (B, ...), v and result (B, n).

    One forward pass; every product is a backward pass through its graph. Plain autograd rather than torch.func.vjp,
    which refuses many a custom function.

    Raises:
        ValueError: f changes the shape, gives NaN or Inf, or hides its derivative from autograd.
    """
    with torch.inference_mode(False), torch.enable_grad():
        state = y.detach().clone().requires_grad_()
        value = f(state)
    _check_value(value, y)
    if not value.requires_grad:
        raise ValueError("f(y) does not depend on y as far as autograd can see; remove detach() or no_grad() inside f")

    def product(v):
        return torch.autograd.grad(value, state, v.view(y.shape), retain_graph=True)[0].reshape(v.shape)

    return product


def forward_product(f, y):
    """v -> J v for each sample: y (B, ...), v and result (B, n).

    torch.func.jvp, though a double vjp is about three times as fast through GroupNorm (0.7 against 2.3 ms for a block
    of 16 channels, 32 samples of 8x8, on one core): where a backward pass is itself not differentiable, as at an
    implicit root, the double vjp is silently wrong. It stands in where torch refuses the jvp (of a GroupNorm's backward
    pass, which ie_skip holds), and then has to satisfy <J u, w> = <u, J^T w>.
    """
    _load_decompositions()
    y = y.detach()

    def product(v):
        with torch.inference_mode(False), torch.no_grad():
            return torch.func.jvp(f, (y.clone(),), (v.view(y.shape).clone(),))[1].reshape(v.shape)

    try:
        product(torch.zeros_like(y).reshape(len(y), -1))
    except (RuntimeError, NotImplementedError) as refusal:
        return _double_reverse(f, y, refusal)
    return product


def _double_reverse(f, y, refusal):
    reverse = reverse_product(f, y)
    with torch.inference_mode(False), torch.enable_grad():
        state = y.clone().requires_grad_()
        value = f(state)
        cotangent = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, state, cotangent, create_graph=True)

    def product(v):
        return torch.autograd.grad(pulled, cotangent, v.view(y.shape), retain_graph=True)[0].reshape(v.shape)

    u, w = (direction(y.numel(), seed).to(y).view(len(y), -1) for seed in (1, 2))
    try:
        image = product(u)
    except RuntimeError:  # the backward pass is not differentiable at all
        raise refusal from None
    if abs((image * w).sum() - (u * reverse(w)).sum()) > 1e3 * torch.finfo(y.dtype).eps * image.norm():
        raise refusal
    return product


def direction(n, seed):
    """(n,) random unit vector, float64 on the host, the same on every machine and for every batch."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm()


@cache
def _load_decompositions():
    # The first forward-mode product loads TorchScript, whose deprecation warning is none of our caller's business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


def _check_state(y):
    if not isinstance(y, torch.Tensor) or not y.dtype.is_floating_point or y.dim() < 1:
        raise ValueError(f"y must be a floating-point tensor (B, ...), got {getattr(y, 'dtype', type(y).__name__)}")
    if y.numel() == 0:
        raise ValueError(f"y has no entries: its shape is {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y holds NaN or Inf")


def _check_value(value, y):
    if value.shape != y.shape:
        raise ValueError(f"f maps a state of shape {tuple(y.shape)} to {tuple(value.shape)}; it must keep the shape")
    if not bool(torch.isfinite(value).all()):
        raise ValueError("f gives NaN or Inf at y")
