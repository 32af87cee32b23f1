"""Why a network blows up or its equations stay unsolved, in the terms of stability, and what to try."""
import math
from dataclasses import dataclass

import torch

import odenets
from stability.linear.spectra import ritz_values, spectral_norm, spectrum
from stability.network.blocks import _amplification, _largest_steps
from stability.network.places import places

CLOSE = 1e-3  # a relative residual that suffices for a sentence of two digits
TOLERABLE = 1.01  # growth of a contracting mode over a block; eigenvalues beside the imaginary axis exceed 1 by rounding
MOST_STEPS = 200  # a larger number of substeps is no advice


@dataclass(frozen=True, eq=False)
class Explanation:
    """`str` gives the sentences that a user needs.

    stage, block: the block that explains the most, None where no state on the way is finite. scheme, step_size: there.
    amplification: max |R(h lambda)| over the images; None without an R(z). rightmost, largest: eigenvalues of h J there.
    largest_step: h up to which no contracting mode grows; None without R. lipschitz: ||h J||. broken: where NaN or Inf
        appears first, in words, or None. unsolved: share of images with an equation unsolved, or None.
    advice: what to try, a tuple of sentences.
    """

    stage: int | None
    block: int | None
    scheme: str
    step_size: float | None
    amplification: float | None
    rightmost: complex | None
    largest: complex | None
    largest_step: float | None
    lipschitz: float | None
    broken: str | None
    unsolved: float | None
    advice: tuple

    def __str__(self):
        happened = [f"NaN or Inf appears {self.broken}"] if self.broken else []
        if self.unsolved:
            happened.append(f"{100 * self.unsolved:.0f} % of the images leave an equation unsolved")
        opening = f"{' and '.join(happened)}. " if happened else ""
        if self.stage is None:
            return f"{opening}{' '.join(self.advice)}"
        where = f"Stage {self.stage}, block {self.block} ({self.scheme}, h = {self.step_size:.3g}): "
        growth = "no R(z), for the steps depend on the data" if self.amplification is None else (
            f"max |R(h\u03bb)| = {self.amplification:.3g}")
        largest = "" if self.largest_step is None else (
            f", largest stable h {'unlimited' if self.largest_step == math.inf else f'= {self.largest_step:.2g}'}")
        facts = f"{growth}, rightmost h\u03bb = {_number(self.rightmost)}, ||hJ|| = {self.lipschitz:.3g}{largest}. "
        return f"{opening}{where}{facts}{' '.join(self.advice)}"


def explain(net, x, dimension=40):
    """Where and why a network's states grow, or its equations stay unsolved.

    Args:
        net: Any module with `ODEStage`s, or a stage; its own precision and tolerances.
        x: Some images (B, ...), best those on which it fails.
        dimension: Of the Krylov spaces.

    Returns:
        An `Explanation` of the block with the largest growth factor |R(h lambda)| among those whose states are finite (for an
        adaptive scheme the one with the rightmost eigenvalue).

    Raises:
        ValueError: See `places`.
    """
    along = places(net, x)
    solved = odenets.converged(net)
    unsolved = None if solved is None else 1 - solved.double().mean().item()
    broken = _first_broken(net, x, along)
    if broken == (along[0].stage, along[0].block):
        return Explanation(None, None, str(along[0].scheme), None, None, None, None, None, None, "before the first block",
                           unsolved, ("The state there, or the field, is beyond range: weights or images are. Load an earlier "
                                      "checkpoint, lower the learning rate, or clip the gradients.",))
    sound = along if broken is None else [place for place in along if (place.stage, place.block) < broken]
    seen = [(place, _values(place, dimension)) for place in sound]
    place, z = max(seen, key=lambda pair: (_growth(*pair) or 0.0, pair[1].real.max()))
    rightmost, largest = complex(z[z.real.argmax()]), complex(z[z.abs().argmax()])
    lipschitz = float(spectral_norm(place.increment, place.state, tol=CLOSE).max())
    growth = _growth(place, z)
    step = None if growth is None else float(_largest_steps(place.scheme, z[None], place.step_size))
    where = broken and ("behind the last block" if broken[0] == math.inf else f"in stage {broken[0]}, block {broken[1]}")
    return Explanation(place.stage, place.block, str(place.scheme), place.step_size, growth, rightmost, largest, step,
                       lipschitz, where, unsolved, tuple(_advice(place, z, lipschitz, broken, unsolved)))


@torch.no_grad()
def _first_broken(net, x, along):
    """(stage, block) where a state or its slope is first not finite; (inf, 0) behind all; None nowhere."""
    for place in along:
        if not (place.state.isfinite().all() and place.slope(place.state).isfinite().all()):
            return place.stage, place.block
    return None if net(x).isfinite().all() else (math.inf, 0)


def _values(place, dimension):
    """Eigenvalues of h J, those with Im >= 0, of all images: a sketch, and the extreme ones converged beyond it."""
    f, y, k = place.increment, place.state, min(2, place.state[0].numel())
    z = torch.cat([ritz_values(f, y, dimension), *(spectrum(f, y, k, which, CLOSE, max_products=4 * dimension).values
                                                   for which in ("LM", "LR"))], 1).flatten()
    return torch.where(z.imag < 0, z.conj(), z).resolve_conj()


def _growth(place, z):
    return None if place.scheme.name == "adaptive" or not len(z) else float(_amplification(place.scheme, z).max())


def _advice(place, z, lipschitz, broken, unsolved):
    contracting, zero = z[z.real < 0], CLOSE * float(z.abs().max())
    rightmost = float(z.real.max())
    needed = 1 if place.scheme.name == "adaptive" else _splits(place, contracting)
    if needed != 1:
        fewer = f"try {needed * place.substeps} substeps instead of {place.substeps}, or" if needed else "try"
        yield f"The step is longer than the contracting modes allow: {fewer} an A-stable scheme such as implicit_euler."
    if rightmost > zero:
        yield ("Modes with Re \u03bb > 0 grow in the flow itself, and no scheme helps there: use a field that does not expand, "
               f"field='damped(rate={_rounded_up(rightmost / place.step_size):.2g})' or 'gradient_flow', or the log-norm "
               "penalty in training.")
    if unsolved:
        factor = max(2, math.ceil(2 * lipschitz)) if math.isfinite(lipschitz) else 2
        yield (f"Equations are easy to solve where ||hJ|| < 1/2: try {factor * place.substeps} substeps, or solver=newton and "
               "more max_iterations.")
    if needed == 1 and rightmost <= zero and not unsolved:
        yield ("Nothing grows by its eigenvalues; what grows all the same does so by non-normality: see the norm of a step."
               if broken is None else
               "The blocks before that are stable: look at the layers between the stages and at the size of the weights.")


def _splits(place, contracting):
    """Into how many equal parts a step is to be cut so that no contracting mode grows over it; None: more than sensible."""
    for parts in range(1, MOST_STEPS // place.substeps + 1):
        if not len(contracting) or float(_amplification(place.scheme, contracting / parts).max()) ** parts <= TOLERABLE:
            return parts
    return None


def _rounded_up(value):
    """Up to one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return unit * math.ceil(value / unit)


def _number(z):
    return f"{z.real:.3g}" if abs(z.imag) < 1e-12 * max(1, abs(z)) else f"{z.real:.3g}{z.imag:+.3g}i"
