"""Leading singular values of Jacobians, one set for each sample, from products with J and J^T alone."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stability.linear.arnoldi import MEMORY, krylov_memory
from stability.linear.eigenpairs import MAX_PRODUCTS, Search, leading
from stability.linear.jacobian import linearised
from stability.linear.spectra import check_count, entries, gram_operator, tolerance
from stability.types import Map, PerSample, State

FAILURE = 1e-9  # probability over the start vector with which `norm_bound` may be too small


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Leading singular values of each sample's Jacobian, the largest first; tensors on the host.

    values: (B, k).
    residuals: (B, k), ||J^T u - s v|| / s_1 with J v = s u, from actual products: J has a singular value that near.
    converged: (B, k) bool, residual <= tol; behind the first value only where the search ended within its products, and
        found no further copy.
    norm_bound: (B,), at least ||J||_2: but for a probability of 1e-9 over the start vector; certain where the Krylov
        space is the whole space. The largest value itself bounds ||J||_2 from below.
    products: products with J^T J spent on the sample that needed most.
    """

    values: Float[Tensor, "batch k"]
    residuals: Float[Tensor, "batch k"]
    converged: Bool[Tensor, "batch k"]
    norm_bound: PerSample
    products: int


def singular_values(
    f: Map,
    y: State,
    k: int = 6,
    *,
    tol: float | None = None,
    dimension: int | None = None,
    max_products: int = MAX_PRODUCTS,
    memory: int = MEMORY,
) -> SingularValues:
    """The k largest singular values of each sample's Jacobian.

    Lanczos on J^T J finds the right singular vectors; the values are those of J on them, so that small ones do not
    suffer from the square. Arguments and errors as for `stability.spectrum`; f has to allow forward mode.

    Returns:
        `SingularValues`.

    Source: Golub & Van Loan (2013), section 10.4; Kuczynski & Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13, for the
    bound: with probability 1 - d, m Lanczos steps from a random start reach (1 - e) of the largest eigenvalue,
    d = 1.648 sqrt(n) exp(-(2m - 1) sqrt(e)).
    """
    n, tol = entries(y), tolerance(y, tol)
    check_count(k, n)
    search, parts = Search(k, "LM", tol, dimension, max_products, memory, symmetric=True, vectors=True), []
    for part in y.split(krylov_memory(y, k, dimension, memory).chunk):
        units = torch.ones(len(part), 1).to(part)
        found = leading(partial(gram_operator(f, part), units), part, len(part), n, search)
        assert found.vectors is not None  # the search asks for them
        parts.append((*_refined(f, part, found.vectors.real, units), found.settled, found.steps, torch.tensor(found.products)))
    joined = (torch.stack(part) if part[0].dim() == 0 else torch.cat(part) for part in zip(*parts))
    values, residuals, units, settled, steps, products = joined
    bound = values[:, 0] / (1 - _missed(n, steps)).sqrt() + residuals[:, 0]
    residuals = torch.where(values[:, :1] > 0, residuals / values[:, :1], 0)
    converged = (residuals <= tol) & (settled[:, None] | (torch.arange(k) == 0))
    return SingularValues(values * units, residuals, converged, bound * units[:, 0], int(products.max()))


def _refined(f: Map, y: State, V: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of J / unit on the rows of V (B, k, n), and ||J^T u - s v|| / unit, both (B, k); and the unit (B, 1);
    float64 on the host."""
    at = linearised(f, y)
    images = torch.stack([at.forward(v.contiguous()) / unit for v in V.unbind(1)], 1)
    W, s, U = torch.linalg.svd(images.double(), full_matrices=False)
    U, V = U.to(V), (W.mT @ V.double()).to(V)
    back = torch.stack([at.reverse(u.contiguous()) / unit for u in U.unbind(1)], 1)
    return s.cpu(), (back.double() - s[:, :, None] * V.double()).norm(dim=2).cpu(), unit.double().cpu()


def _missed(n: int, steps: Tensor) -> Tensor:
    """The share e of the largest eigenvalue of J^T J that so many Lanczos steps may have missed, (B,); 1 for all."""
    e = (math.log(1.648 * math.sqrt(n) / FAILURE) / (2 * steps.double() - 1)) ** 2
    return torch.where(steps == n, 0, e.clamp_max(1))
