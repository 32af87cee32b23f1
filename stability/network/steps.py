"""The Jacobian D of the discrete step at a place, through its solve: its norm and its spectral radius."""

import warnings

import torch

from odenets.solve.krylov import gmres
from stability.linear.eigenpairs import Search, leading
from stability.linear.jacobian import linearised
from stability.linear.spectra import spectral_norm, spectrum
from stability.network.places import Place
from stability.types import PerSample, Product, Rows

RADIUS_PRODUCTS = 300  # after which a spectral radius is taken as unknown
SOLVE_PRODUCTS = 200  # of an inner solve


def step_norm(place: Place, tol: float) -> PerSample:
    """(B,) ||D|| of the first step at a place, on the host; a RuntimeWarning where it is a lower bound only.

    Where the step can be undone without a solve, ||D|| = 1 / s with s the smallest singular value of the Jacobian A = D^-1 of
    that: Lanczos on A^T A needs no inner solves.

    Args:
        place: Of a one-step scheme.
        tol: Relative residual in s^2 or ||D||^2, whose error is of its square.
    """
    undo = place.undo
    if undo is None:
        return spectral_norm(place.step, place.state, tol=tol)
    with torch.no_grad():
        end = place.step(place.state)

    def negative(rows: torch.Tensor) -> Product:
        at = linearised(undo, end[rows])
        return lambda v: -at.reverse(at.forward(v))

    # The search knows residuals relative to ||A||^2 only: sharpened until they are small enough for s^2.
    sharp = tol**2
    while True:
        found = leading(negative, end, len(end), end[0].numel(), Search(1, "LR", sharp, symmetric=True))
        wanted = tol * found.values[:, 0].abs() / found.scale[:, 0]
        missed = found.residuals[:, 0] > wanted
        if not bool(missed.any()) or not bool(found.settled.all()):
            break
        sharp = float(wanted.min())
    if bool(missed.any()):
        warnings.warn(f"the norm of {int(missed.sum())} of {len(end)} steps is a lower bound", RuntimeWarning, 2)
    return found.values[:, 0].abs().rsqrt()


def step_radius(place: Place, tol: float) -> PerSample:
    """(B,) spectral radius of D, on the host, to a relative residual `tol`; NaN where that was not reached.

    Inner solves are a hundred times as accurate, so that the search does not see them.
    """
    undo, solved = place.undo, torch.ones(len(place.state), dtype=torch.bool, device=place.state.device)
    if undo is None:
        found = spectrum(place.step, place.state, 1, "LM", tol=tol, max_products=RADIUS_PRODUCTS)
    else:
        with torch.no_grad():
            end = place.step(place.state)

        def inverse(rows: torch.Tensor) -> Product:
            at = linearised(undo, end[rows])

            def product(v: Rows) -> Rows:
                solution = gmres(at.reverse, v, tol / 100, SOLVE_PRODUCTS)
                solved[rows] &= solution.on(v.device).converged
                return solution.value

            return product

        search = Search(1, "LM", tol, max_products=RADIUS_PRODUCTS)
        found = leading(inverse, end, len(end), end[0].numel(), search)
    return torch.where(found.converged[:, 0] & solved.cpu(), found.values[:, 0].abs(), torch.nan)
