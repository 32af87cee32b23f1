"""What makes a network grow by its eigenvalues, and what helps: a remedy is tried in the same terms before it is named."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from odenets.schemes import Scheme, get_scheme
from stability.linear.spectra import ritz_values, spectral_norm, spectrum, tolerance
from stability.methods.regions import growth_factors, largest_stable_step, snapped
from stability.network.places import Place

CLOSE = 1e-3  # a relative residual that suffices for a sentence of two digits
TOLERABLE = 1.01  # growth over the whole network, all blocks and substeps, of what the flow does not expand
MOST_STEPS = 200  # a larger number of substeps is no advice
A_STABLE = ("implicit_euler", "sdirk2", "trapezoid")  # schemes that may be advised; their poles lie apart


@dataclass(frozen=True, eq=False)
class Modes:
    """What acts on perturbations in a block, at all images.

    z: (n,) eigenvalues h lambda with Im >= 0. held: which ones the flow expands by no more over the block than is tolerable, so
        that what they grow beyond it is the scheme's doing.
    """

    place: Place
    z: np.ndarray
    held: np.ndarray


def modes_of(place: Place, dimension: int, blocks: int) -> Modes:
    """The `Modes` of a place, one of so many blocks: a sketch of its eigenvalues, and the extreme ones converged beyond it."""
    f, y, k = place.increment, place.state, min(2, place.state[0].numel())
    found = torch.cat(
        [
            ritz_values(f, y, dimension),
            *(spectrum(f, y, k, which, tol=CLOSE, max_products=4 * dimension).values for which in ("LM", "LR")),
        ],
        1,
    )
    z = snapped(found.resolve_conj().numpy(), tolerance(y, None)).ravel()
    z = np.where(z.imag < 0, z.conj(), z)
    return Modes(place, z, place.substeps * z.real <= math.log(TOLERABLE) / blocks)


Chosen = Callable[[Modes], slice | np.ndarray]  # which modes of a block


def _all(block: Modes) -> slice:
    return slice(None)


def _held(block: Modes) -> np.ndarray:
    return block.held


def _expanding(block: Modes) -> np.ndarray:
    return ~block.held


def log_growth(
    block: Modes, modes: Chosen = _all, *, scheme: Scheme | None = None, substeps: int | None = None, rate: float = 0.0
) -> float:
    """Logarithm of the largest growth over a block by R at the eigenvalues; under another scheme or number of substeps, or with
    -rate y added to the field, where these are given."""
    place, scheme = block.place, scheme or block.place.scheme
    n = substeps or place.substeps
    z = (block.z[modes(block)] - rate * place.step_size) * (place.substeps / n)
    if not len(z):
        return -math.inf
    if not scheme.has_R:
        return float(n * z.real.max())
    return n * math.log(max(float(growth_factors(scheme, z, 0).max()), 1e-300))


def _total(blocks: list[Modes], modes: Chosen = _all, **change: Any) -> float:
    """Logarithm of the growth over all blocks, where none makes up for another."""
    return sum(max(0.0, log_growth(block, modes, **change)) for block in blocks)


def _cures(blocks: list[Modes], modes: Chosen, **change: Any) -> bool:
    """Whether some modes no longer grow after a change, and all of them together less than before."""
    return _total(blocks, modes, **change) <= math.log(TOLERABLE) and _total(blocks, **change) < _total(blocks)


def _fewest(blocks: list[Modes], modes: Chosen, **change: Any) -> int | None:
    """The smallest larger number of substeps that cures; None if none does that is sensible."""
    more = range(1 + max(block.place.substeps for block in blocks), MOST_STEPS + 1)
    return next((n for n in more if _cures(blocks, modes, substeps=n, **change)), None)


def _a_stable(blocks: list[Modes], modes: Chosen, **change: Any) -> str | None:
    """ "an A-stable scheme such as ..." with one that cures; None if none of those known does."""
    names = (name for name in A_STABLE if _cures(blocks, modes, scheme=get_scheme(name), **change))
    return next((f"an A-stable scheme such as {name}" for name in names), None)


def _growing(blocks: list[Modes], modes: Chosen) -> list[Modes]:
    """The blocks where some modes grow by more than their share of what is tolerable, the worst first; [] if all do not."""
    if _total(blocks, modes) <= math.log(TOLERABLE):
        return []
    found = [block for block in blocks if log_growth(block, modes) > math.log(TOLERABLE) / len(blocks)]
    return sorted(found, key=lambda block: -log_growth(block, modes))


def advice(blocks: list[Modes], most: Modes, broken: tuple[float, int] | None, unsolved: float | None) -> Iterator[str]:
    """Every cause of growth with the blocks where it acts, and what helps against it, in sentences.

    Args:
        blocks: `Modes` of the blocks, in order. most: the one of them that is spoken of.
        broken: Where NaN or Inf appears, or None. unsolved: share of images with an equation unsolved, or None.
    """
    strained, expanding = _growing(blocks, _held), _growing(blocks, _expanding)
    if strained:
        yield _of_the_step(blocks, strained, most)
    if expanding:
        yield _of_the_field(blocks, expanding, most)
    if unsolved:
        lipschitz, substeps = max((norm(block), block.place.substeps) for block in blocks)
        factor = max(2, math.ceil(2 * lipschitz)) if math.isfinite(lipschitz) else 2
        yield (
            f"Equations are easy to solve where ||hJ|| < 1/2: try {factor * substeps} substeps, or solver=newton and "
            "more max_iterations."
        )
    if not strained and not expanding and not unsolved:
        yield (
            "Nothing grows by its eigenvalues; what grows all the same does so by non-normality: see the norm of a step."
            if broken is None
            else "The blocks before that are stable: look at the layers between the stages and at the size of the weights."
        )


def _of_the_step(blocks: list[Modes], strained: list[Modes], most: Modes) -> str:
    place, z = strained[0].place, strained[0].z[strained[0].held]
    R = growth_factors(place.scheme, z, 0)
    mode, grown = z[R.argmax()], times(log_growth(strained[0], _held))
    if mode.real == 0 and largest_stable_step(place.scheme, [mode], rounding=0).step == 0:
        over_block = f", {grown:.3g} over the block" if place.substeps > 1 else ""
        cause = f"every mode on the imaginary axis grows at any h, by |R(ih\u03c9)| = {R.max():.3g} a step{over_block}"
    else:
        which = "contracting modes" if mode.real < 0 else "modes on the imaginary axis"
        cause = f"the step is longer than the {which} allow, they grow {grown:.3g}-fold over the block"
    substeps, scheme = _fewest(blocks, _held), _a_stable(blocks, _held)
    options = [f"{substeps} substeps instead of {place.substeps}"] if substeps else []
    options += [scheme] if scheme else []
    remedy = f": try {', or '.join(options)}" if options else "; shorter steps alone would follow a flow that expands"
    return _sentence(strained, most, f"{cause}{remedy}.")


def _of_the_field(blocks: list[Modes], expanding: list[Modes], most: Modes) -> str:
    rate = _rounded_up(max(block.z.real.max() / block.place.step_size for block in expanding))
    # The rate moves the contracting modes too, out of the region of an explicit scheme with long steps.
    more: str | None
    if _cures(blocks, _all, rate=rate):
        more = ""
    elif substeps := _fewest(blocks, _all, rate=rate):
        more = f" with {substeps} substeps"
    else:
        scheme = _a_stable(blocks, _all, rate=rate)
        more = f" with {scheme}" if scheme else None
    damped = "" if more is None else f"field='damped(rate={rate:.2g})'{more} or "
    return _sentence(
        expanding,
        most,
        "modes with Re \u03bb > 0 grow in the flow itself, and no scheme helps there: use a "
        f"field that does not expand, {damped}'gradient_flow', or the log-norm penalty in "
        "training.",
    )


def _sentence(found: list[Modes], most: Modes, text: str) -> str:
    """What is so in the blocks that were found, by the name of the first, unless that is the one spoken of already."""
    others = f"{len(found) - 1} other block{'s' * (len(found) > 2)} " if len(found) > 1 else ""
    if found[0] is most:
        where = f"here and in {others}" if others else ""
    else:
        where = f"in stage {found[0].place.stage}, block {found[0].place.block} {'and ' * bool(others)}{others}"
    return f"{where}{text}"[0].upper() + f"{where}{text}"[1:]


def norm(block: Modes) -> float:
    """||hJ||, the largest of all images."""
    return float(spectral_norm(block.place.increment, block.place.state, tol=CLOSE).max())


def times(growth: float) -> float:
    """The factor of which this is the logarithm."""
    return math.exp(growth) if growth < 700 else math.inf


def _rounded_up(value: float) -> float:
    """Up to one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return unit * math.ceil(value / unit)
