"""A penalty on the logarithmic norm, for training: fields that do not expand are those where a stable scheme can matter."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odenets.solve.krylov import Krylov, hold
from stability.errors import InputError
from stability.network.places import places
from stability.random import direction
from stability.scaling import scaled_norm
from stability.types import Map, PerSample, Product, Rows, State

Directions = dict[tuple[int, int], Float[Tensor, "..."]]  # of a search in each (stage, block)


def log_norm_penalty(
    net: nn.Module,
    x: State,
    target: float = 0.0,
    iterations: int = 6,
    *,
    samples: int = 32,
    directions: Directions | None = None,
) -> Float[Tensor, ""]:
    """Mean over blocks and samples of max(0, m - target), with m an estimate of mu_2 of a block's field at its input.

    The states are taken as given: the penalty moves the weights of a block at the states it meets, not the states.

    Args:
        net: A network of ODE stages, or a stage.
        x: Images (B, ...); for a stage, states.
        target: What mu_2 may be without a price; negative asks for contraction.
        iterations: Lanczos steps for each block. What they miss, they miss on the side of no price: on nets for digits, trained
            or not, 6 from a random start see 87 to 98 % of mu_2, 3 see 55 to 69 %; from the directions of another batch 3 see
            83 to 93 %, 4 see 88 to 96 %.
        samples: Of x the first so many are looked at: of a shuffled batch, a fair sample.
        directions: Where searches begin, by (stage, block), at random where it is silent; receives the mean of those they end
            with. Give the next batch the same dict, and fewer iterations will do.

    Returns:
        A 0-dim tensor, differentiable in the parameters of the blocks.

    Raises:
        ValueError: See `places`; iterations or samples < 1.
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    excess, directions = [], {} if directions is None else directions
    for place in places(net, x[:samples]):
        key = place.stage, place.block
        estimate, v = _estimate(place.slope, place.state, iterations, directions.get(key))
        excess.append((estimate - target).clamp_min(0).mean())
        # Eigenvectors have no sign: all of them with that of the first.
        directions[key] = torch.where((v @ v[0] < 0)[:, None], -v, v).mean(0)
    return torch.stack(excess).mean()


def log_norm_estimate(f: Map, y: State, iterations: int = 6) -> PerSample:
    """(B,) lower bounds of mu_2 of the Jacobian of f at y, differentiable in the parameters of f.

    v^T J v with v the rightmost Ritz vector of (J + J^T)/2 in a Krylov space from a fixed direction. v is held fixed when
    that is differentiated, which is the exact derivative where v is an eigenvector. In the search J v is a difference of two
    values of f, a quarter of the cost of a product; what rounding and kinks do to v makes the bound lower and no more, for
    v^T J v itself is an actual product.

    Args:
        f: (B, ...) -> (B, ...), each sample on its own, twice differentiable by autograd.
        y: States (B, ...).
        iterations: Dimension of the Krylov space; at the entries of a sample the value is exact.

    Source: Soderlind (2006), BIT 46, for mu_2; Saad (2011), Numerical Methods for Large Eigenvalue Problems, chapter 6.
    """
    return _estimate(f, y, iterations, None)[0]


def _estimate(f: Map, y: State, iterations: int, start: Tensor | None) -> tuple[PerSample, Rows]:
    """The estimate, and the vectors v that it belongs to."""
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, got {iterations}")
    with torch.enable_grad():
        state = y.detach().requires_grad_()
        value = f(state.clone())  # f may write into its argument
    size = torch.where((size := scaled_norm(y.detach())) > 0, size, 1).view(-1, *[1] * (y.dim() - 1))
    move = torch.finfo(y.dtype).eps ** 0.5 * size

    def symmetric(v: Rows) -> Rows:
        v = v.view(y.shape)
        pulled = torch.autograd.grad(value, state, v, retain_graph=True)[0]
        with torch.no_grad():
            pushed = (f(y + move * v) - value) / move
        return (pulled + pushed).flatten(1) / 2

    q = direction(y[0].numel(), 0).to(y) if start is None else (start / scaled_norm(start[None])).to(y)
    v = _rightmost(symmetric, q.expand(len(y), -1), iterations)
    # J^T v again, for the parameters this time: an image of v that depends on them.
    (image,) = torch.autograd.grad(value, state, v.view(y.shape), create_graph=True)
    return (image.flatten(1) * v).sum(1), v


def _rightmost(symmetric: Product, q: Rows, iterations: int) -> Rows:
    """(B, n) rightmost Ritz vectors of a symmetric operator, by Lanczos with full orthogonalisation from q."""
    krylov = Krylov(symmetric, q, min(iterations, q.shape[1]), unit=None, proceed=hold, again=True)
    for _ in range(krylov.limit):
        krylov.step()
    V, T = krylov.basis(krylov.m), krylov.hessenberg()[:, :-1]
    empty = (V.norm(dim=2) == 0).to(T)
    bound = 1 + T.abs().sum(2).amax(1)
    values, vectors = torch.linalg.eigh((T + T.mT) / 2 - torch.diag_embed(empty * bound[:, None]))
    return (vectors[:, None, :, -1] @ V)[:, 0]
