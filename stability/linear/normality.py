"""Departure from normality: how little the eigenvalues of a Jacobian say about its powers and its exponential."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import schur

from stability.errors import InputError
from stability.linear.arnoldi import MEMORY
from stability.linear.jacobian import dense_jacobians, linearised
from stability.linear.spectra import entries
from stability.random import given_or_new
from stability.scaling import power_of_two


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

    henrici: torch.Tensor | None
    commutator: torch.Tensor
    commutator_error: torch.Tensor
    frobenius: torch.Tensor
    frobenius_error: torch.Tensor
    exact: bool
    kind: str


def departure_from_normality(f, y, probes=32, generator=None, dense_limit=512):
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
        return Departure(
            henrici,
            commutator,
            torch.zeros_like(commutator),
            frobenius,
            torch.zeros_like(frobenius),
            True,
            "exact: dense matrix",
        )
    generator = given_or_new(generator)
    signs = torch.randint(2, (probes, n), generator=generator, device=generator.device).to(y) * 2 - 1
    # What a chunk holds: a probe, its images and those of the graph are few vectors for each sample.
    parts = [_estimate(f, part, signs) for part in y.split(max(1, MEMORY // (16 * n * y.element_size())))]
    return Departure(
        None, *(torch.cat(part) for part in zip(*parts)), False, f"estimate: {probes} random probes, with standard errors"
    )


def _dense(f, y):
    """Henrici's number, ||J J^T - J^T J||_F, ||J||_F."""
    J = dense_jacobians(f, y)[0].double()
    unit = float(power_of_two(J[None]))
    J = (J / unit).cpu().numpy()
    # The strict triangle of the Schur form: the difference of the squares would cancel.
    T, _ = schur(J, output="complex")
    return np.linalg.norm(np.triu(T, 1)) * unit, np.linalg.norm(J @ J.T - J.T @ J) * unit**2, np.linalg.norm(J) * unit


def _estimate(f, y, signs):
    at = linearised(f, y)
    squares, unit = [], None
    for sign in signs:
        v = sign.expand(len(y), -1).contiguous()
        up, down = at.forward(v), at.reverse(v)
        unit = power_of_two(up) if unit is None else unit
        up, down = up / unit, down / unit
        commutator = (at.forward(down) - at.reverse(up)) / unit
        squares.append([part.double().square().sum(1).cpu() for part in (commutator, up)])
    unit = unit[:, 0].double().cpu()
    for parts, scale in zip(zip(*squares), (unit**2, unit)):
        squares = torch.stack(parts)
        root = squares.mean(0).sqrt()
        yield root * scale
        # The error of a root is that of its square over twice the root.
        yield torch.where(root > 0, squares.std(0) / len(squares) ** 0.5 / (2 * root), 0) * scale
