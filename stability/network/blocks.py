"""The dynamics of a network block by block: where h lambda lies, what the scheme makes of it, what a whole step does."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

import odenets
from odenets.schemes import Scheme
from stability.linear.jacobian import dense_jacobians
from stability.linear.kreiss import kreiss_constant
from stability.linear.spectra import log_norm, ritz_values, spectral_norm, spectrum, tolerance
from stability.methods.regions import ROUNDING, growth_factors, largest_stable_step, snapped
from stability.network.growth import Exponents, lyapunov_exponents
from stability.network.places import Place, places
from stability.network.steps import step_norm, step_radius
from stability.types import Map, PerSample, Progress, State

Some = Float[Tensor, " few"]  # of the first samples only
NORM_TOL = 1e-2  # of norms' residuals: extreme eigenvalues of symmetric operators, whose error is of its square


@dataclass(frozen=True, eq=False)
class BlockDynamics:
    """One block at the states that enter it; tensors on the host, a row for each sample.

    stage, block, step_size, substeps: where; h and the steps of the block.
    ritz: (B, m) complex, Ritz values of h J: a sketch, whose outermost members approximate eigenvalues h lambda and whose
        density means nothing. amplification: (B, m) |R| there; None for an adaptive scheme.
    rounding: relative to the largest modulus, how far off eigenvalues may be: see `stability.snapped`.
    eigenvalues: (b, n) complex, all h lambda of the first b samples where the state is small, else None: shares and means
        are taken over these, never over Ritz values. growth: (b, n) |R| there, or None.
    largest_step: (B,) largest stable h over the Ritz values that do not expand, see `StableStep`; None without R.
    log_norm, lipschitz: (B,) mu_2(h J) and ||h J||.
    kreiss: (b,) bound from below of the Kreiss constant of h J beyond its rightmost eigenvalue, of the first b samples (NaN
        where that did not converge): how much faster than exponentially a perturbation grows at first; 1 if J is normal.
    step_norm, step_radius: (B,) norm and spectral radius (NaN where it did not converge) of the Jacobian of the discrete
        step, through its solve; None for multistep schemes, whose step depends on more than the state.
    """

    stage: int
    block: int
    step_size: float
    substeps: int
    ritz: Complex[Tensor, "batch m"]
    amplification: Float[Tensor, "batch m"] | None
    eigenvalues: Complex[Tensor, "few n"] | None
    growth: Float[Tensor, "few n"] | None
    largest_step: PerSample | None
    log_norm: PerSample
    lipschitz: PerSample
    kreiss: Some
    step_norm: PerSample | None
    step_radius: PerSample | None
    rounding: float = ROUNDING

    @property
    def order_star(self) -> Float[Tensor, "batch m"] | None:
        """(B, m) |R(z)| / |exp(z)| at the Ritz values: above 1 the step grows more than the flow. None without R.

        Source: Wanner, Hairer, Norsett (1978), BIT 18.
        """
        return None if self.amplification is None else self.amplification / self.ritz.real.exp()

    @property
    def expanding_share(self) -> Some | None:
        """(b,) share of all eigenvalues with Re > 0, where every consistent scheme grows; None where they are unknown."""
        if self.eigenvalues is None:
            return None
        return torch.from_numpy(snapped(self.eigenvalues.numpy(), self.rounding).real > 0).double().mean(1)


def block_dynamics(
    place: Place, dimension: int = 40, *, dense_limit: int = 0, dense_samples: int | None = None
) -> BlockDynamics:
    """The dynamics of one block.

    Args:
        place: A `Place`; in float64, with the scheme's equations solved tightly.
        dimension: Of the Krylov space of the Ritz values.
        dense_limit: Where a state has at most so many entries, all eigenvalues are computed from dense Jacobians,
        dense_samples: for so many samples, as the Kreiss constant is; None for all of them.

    Raises:
        ValueError: The state or the field is not fit for analysis; see `stability.spectrum`.
    """
    f, y, scheme = place.increment, place.state, place.scheme
    ritz, eigenvalues = ritz_values(f, y, dimension), None
    if y[0].numel() <= dense_limit:
        dense = dense_jacobians(f, y[:dense_samples]).double().cpu().numpy()
        eigenvalues = torch.from_numpy(np.stack([_eigenvalues(J) for J in dense]))
    has_R, one_step, rounding = scheme.has_R, scheme.one_step, tolerance(y, None)
    return BlockDynamics(
        place.stage,
        place.block,
        place.step_size,
        place.substeps,
        ritz,
        _amplification(scheme, ritz, rounding) if has_R else None,
        eigenvalues,
        _amplification(scheme, eigenvalues, rounding) if has_R and eigenvalues is not None else None,
        _largest_steps(scheme, ritz, place.step_size, rounding) if has_R else None,
        log_norm(f, y, tol=NORM_TOL),
        spectral_norm(f, y, tol=NORM_TOL),
        _kreiss(f, y[:dense_samples], dimension),
        step_norm(place, NORM_TOL) if one_step else None,
        step_radius(place, NORM_TOL) if one_step else None,
        rounding,
    )


def dynamics(
    net: nn.Module,
    x: State,
    dimension: int = 40,
    *,
    dense_limit: int = 0,
    dense_samples: int | None = None,
    step_tol: float = 1e-6,
    progress: Progress = lambda done, total: None,
) -> list[BlockDynamics]:
    """The dynamics of every block of a network at the states that images run through.

    Args:
        net: Any module with `ODEStage`s, or a stage; in float64.
        x: Images (B, ...) in float64; for a stage, states.
        dimension, dense_limit, dense_samples: See `block_dynamics`.
        step_tol: Equations are solved to this: what is described is the scheme, not the solver.
        progress: Called with (blocks done, blocks in all).

    Returns:
        A list of `BlockDynamics`, in order.

    Raises:
        ValueError: See `places` and `block_dynamics`.
    """
    found = []
    with odenets.tightened(net, step_tol):
        along = places(net, x)
        for place in along:
            found.append(block_dynamics(place, dimension, dense_limit=dense_limit, dense_samples=dense_samples))
            progress(len(found), len(along))
    return found


def stage_exponents(
    net: nn.Module, x: State, *, k: int = 1, tol: float = 1e-3, max_rounds: int = 20, step_tol: float = 1e-6
) -> tuple[list[Exponents], Exponents]:
    """Finite-time Lyapunov exponents of the discrete steps, for each stage over its own time, and end to end.

    Args:
        net, x, step_tol: As in `dynamics`.
        k, tol, max_rounds: As in `lyapunov_exponents`.

    Returns:
        ([`Exponents` of each stage], `Exponents` of the whole network, from input to output, per unit of time in stages).
    """
    found, time = [], 0.0
    with odenets.tightened(net, step_tol):
        along = places(net, x)
        for index, stage in enumerate(odenets.stages(net).values()):
            blocks = [place for place in along if place.stage == index]
            maps: list[Map] = [stage] if not stage.scheme.one_step else [place.advance for place in blocks]
            length = stage.interval * len(stage.fields)
            start = blocks[0].state
            found.append(lyapunov_exponents(maps, start, min(k, start[0].numel()), time=length, tol=tol, max_rounds=max_rounds))
            time += length
        return found, lyapunov_exponents(net, x, k, time=time, tol=tol, max_rounds=max_rounds)


def _amplification(scheme: Scheme, z: Tensor, rounding: float) -> Tensor:
    """`growth_factors` of a complex tensor on the host."""
    return torch.from_numpy(growth_factors(scheme, z.numpy(), rounding))


def _largest_steps(scheme: Scheme, z: Complex[Tensor, "batch m"], h: float, rounding: float) -> PerSample:
    # Eigenvalues of a real matrix come in conjugate pairs, which a scheme treats alike: half of them will do.
    steps = [largest_stable_step(scheme, row[row.imag >= 0].numpy() / h, rounding=rounding).step for row in z]
    return torch.tensor(steps, dtype=torch.float64)


def _eigenvalues(J: np.ndarray) -> np.ndarray:
    """(n,) all eigenvalues of J (n, n): those of C Q, where J = Q C has low rank, as with units that rest; and zeros."""
    Q, R, order = scipy.linalg.qr(J, pivoting=True)
    size = abs(np.diag(R))
    rank = int((size > len(J) * np.finfo(float).eps * size[0]).sum())
    C = np.empty_like(R[:rank])
    C[:, order] = R[:rank]
    return np.concatenate([np.linalg.eigvals(C @ Q[:, :rank]).astype(complex), np.zeros(len(J) - rank)])


def _kreiss(f: Map, y: State, dimension: int) -> PerSample:
    rightmost = spectrum(f, y, 1, "LR")
    known = rightmost.converged[:, 0]
    values = torch.full((len(y),), torch.nan, dtype=torch.float64)
    if bool(known.any()):
        rows = known.to(y.device)
        values[known] = kreiss_constant(
            f, y[rows], threshold=rightmost.values[known, 0].real, dimension=dimension, dense_limit=0
        ).values
    return values
