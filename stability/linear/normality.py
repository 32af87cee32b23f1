"""Departure from normality: how little the eigenvalues of a Jacobian say about its powers and its exponential."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import schur
from torch import Tensor

from stability.errors import InputError
from stability.linear.arnoldi import MEMORY
from stability.linear.jacobian import dense_jacobians, linearised
from stability.linear.spectra import entries
from stability.random import given_or_new
from stability.scaling import power_of_two
from stability.types import Map, PerSample, State


@dataclass(frozen=True, eq=False)
class Departure:
    """Departure from normality of each sample's Jacobian; tensors (B,) on the host, all zero for a normal matrix.

    henrici: (||J||_F^2 - sum |lambda|^2)^(1/2); None where not `exact`.
    commutator: ||J J^T - J^T J||_F. Where henrici is None, henrici^2 >= ||J||_F^2 - (||J||_F^4 - commutator^2 / 2)^(1/2)
        (Kress, de Vries, Wegmann 1974).
    commutator_error: its standard error, 0 where exact.
    frobenius: ||J||_F, the unit of `henrici`; its square is that of `commutator`.
    frobenius_error: its standard error, 0 where exact.
    exact: whether the matrix was formed.
    kind: what the figures are, in words.
    """

    henrici: PerSample | None
    commutator: PerSample
    commutator_error: PerSample
    frobenius: PerSample
    frobenius_error: PerSample
    exact: bool
    kind: str


def departure_from_normality(
    f: Map, y: State, *, probes: int = 32, generator: torch.Generator | None = None, dense_limit: int = 512
) -> Departure:
    """How far each sample's Jacobian is from a normal matrix.

    Args:
        f, y: As for `stability.spectrum`; f has to allow forward mode above `dense_limit`.
        probes: Random vectors above `dense_limit`, at least 2; the relative error falls as 1 / sqrt(probes).
        generator: Draws the probes, the same for every sample; by default a new one with seed 0.
        dense_limit: Up to so many entries the matrix is formed and the result exact.

    Returns:
        A `Departure`.

    Raises:
        ValueError: As for `stability.spectrum`; fewer than 2 probes.

    Source: Henrici (1962), Numer. Math. 4; Hutchinson (1990) for ||C||_F^2 as the mean of ||C v||^2 over random signs v.
    """
    n = entries(y)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 2:
        raise InputError(f"probes must be a whole number of at least 2, got {probes!r}")
    if n <= dense_limit:
        found = (torch.tensor(part, dtype=torch.float64) for part in zip(*[_dense(f, sample) for sample in y.split(1)]))
        henrici, commutator, frobenius = found
        none = torch.zeros_like(commutator)
        return Departure(henrici, commutator, none, frobenius, none, True, "exact: dense matrix")
    generator = given_or_new(generator)
    signs = torch.randint(2, (probes, n), generator=generator, device=generator.device).to(y) * 2 - 1
    # What a chunk holds: a probe, its images and those of the graph are few vectors for each sample.
    parts = [_estimate(f, part, signs) for part in y.split(max(1, MEMORY // (16 * n * y.element_size())))]
    figures = (torch.cat(part) for part in zip(*parts))
    commutator, commutator_error, frobenius, frobenius_error = figures
    kind = f"estimate: {probes} random probes, with standard errors"
    return Departure(None, commutator, commutator_error, frobenius, frobenius_error, False, kind)


def _dense(f: Map, y: State) -> tuple[float, float, float]:
    """Henrici's number, ||J J^T - J^T J||_F, ||J||_F."""
    J = dense_jacobians(f, y)[0].double()
    unit = float(power_of_two(J[None]))
    A = (J / unit).cpu().numpy()
    # The strict triangle of the Schur form: the difference of the squares would cancel.
    T, _ = schur(A, output="complex")
    henrici, commutator, frobenius = (float(np.linalg.norm(part)) for part in (np.triu(T, 1), A @ A.T - A.T @ A, A))
    return henrici * unit, commutator * unit**2, frobenius * unit


def _estimate(f: Map, y: State, signs: Tensor) -> Iterator[Tensor]:
    at = linearised(f, y)
    probes = [sign.expand(len(y), -1).contiguous() for sign in signs]
    unit, found = power_of_two(at.forward(probes[0])), []
    for v in probes:
        up, down = at.forward(v) / unit, at.reverse(v) / unit
        commutator = (at.forward(down) - at.reverse(up)) / unit
        found.append([part.double().square().sum(1).cpu() for part in (commutator, up)])
    scale = unit[:, 0].double().cpu()
    for parts, power in zip(zip(*found), (2, 1)):
        squares = torch.stack(parts)
        root = squares.mean(0).sqrt()
        yield root * scale**power
        # The error of a root is that of its square over twice the root.
        yield torch.where(root > 0, squares.std(0) / len(squares) ** 0.5 / (2 * root), 0) * scale**power
