"""A penalty on the logarithmic norm, for training: fields that do not expand are those where a stable scheme can matter."""

import torch

from stability.errors import InputError
from stability.network.places import places
from stability.random import direction
from stability.scaling import power_of_two


def log_norm_penalty(net, x, target=0.0, iterations=6):
    """Mean over blocks and samples of max(0, m - target), with m an estimate of mu_2 of a block's field at its input.

    The states are taken as given: the penalty moves the weights of a block at the states it meets, not the states.

    Args:
        net: A network of ODE stages, or a stage.
        x: Images (B, ...); for a stage, states.
        target: What mu_2 may be without a price; negative asks for contraction.
        iterations: Lanczos steps for each block.

    Returns:
        A 0-dim tensor, differentiable in the parameters of the blocks.

    Raises:
        ValueError: See `places`; iterations < 1.
    """
    found = places(net, x)
    return torch.stack(
        [(log_norm_estimate(place.slope, place.state, iterations) - target).clamp_min(0).mean() for place in found]
    ).mean()


def log_norm_estimate(f, y, iterations=6):
    """(B,) lower bounds of mu_2 of the Jacobian of f at y, differentiable in the parameters of f.

    v^T J v with v the rightmost Ritz vector of (J + J^T)/2 in a Krylov space from a fixed direction. v is held fixed when
    that is differentiated, which is the exact derivative where v is an eigenvector.

    Args:
        f: (B, ...) -> (B, ...), each sample on its own, twice differentiable by autograd.
        y: States (B, ...).
        iterations: Dimension of the Krylov space; at the entries of a sample the value is exact.

    Source: Soderlind (2006), BIT 46, for mu_2; Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6.
    """
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, got {iterations}")
    with torch.enable_grad():
        state = y.detach().requires_grad_()
        value = f(state.clone())  # f may write into its argument
        cotangent = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, state, cotangent, create_graph=True)

    def symmetric(v):
        v = v.reshape(y.shape)
        pulled_back = torch.autograd.grad(value, state, v, retain_graph=True)[0]
        pushed = torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]  # the pullback is linear: its own is J v
        return (pulled_back + pushed).flatten(1) / 2

    v = _rightmost(symmetric, y.detach().flatten(1), iterations).reshape(y.shape)
    # J v again, for the parameters this time: an image of v that depends on them.
    (image,) = torch.autograd.grad(value, state, v, create_graph=True)
    return (image * v).flatten(1).sum(1)


def _rightmost(symmetric, y, iterations):
    """(B, n) rightmost Ritz vectors of a symmetric operator, by Lanczos with full orthogonalisation."""
    q = direction(y.shape[1], 0).to(y).expand_as(y)
    basis, images, unit = [], [], None
    for _ in range(min(iterations, y.shape[1])):
        basis.append(q)
        image = symmetric(q)
        unit = power_of_two(image) if unit is None else unit  # so that no square of the operator leaves the range
        images.append(image / unit)
        V, w = torch.stack(basis, 1), images[-1]
        size = w.norm(dim=1, keepdim=True)
        for _ in range(2):
            w = w - ((w[:, None] @ V.mT) @ V)[:, 0]
        rest = w.norm(dim=1, keepdim=True)
        # An invariant subspace: what is left is rounding, and no direction to go on with.
        q = torch.where(rest > 10 * torch.finfo(y.dtype).eps * size, w / rest.clamp_min(torch.finfo(y.dtype).tiny), 0)
    T = V @ torch.stack(images, 1).mT
    empty = (V.norm(dim=2) == 0).to(T)
    bound = 1 + T.abs().sum(2).amax(1)
    values, vectors = torch.linalg.eigh((T + T.mT) / 2 - torch.diag_embed(empty * bound[:, None]))
    return (vectors[:, None, :, -1] @ V)[:, 0]
