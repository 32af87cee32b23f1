"""Why a network blows up or its equations stay unsolved, in the terms of stability, and what to try."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import odenets
from stability.methods.regions import growth_factors, largest_stable_step
from stability.network.advice import advice, log_growth, modes_of, norm, times
from stability.network.places import Place, places
from stability.types import State


@dataclass(frozen=True, eq=False)
class Explanation:
    """`str` gives the sentences that a user needs.

    stage, block: the block that grows most, None where no state on the way is finite. scheme, step_size: there.
    amplification: max |R(h lambda)| over the images; None without an R(z). rightmost, largest: eigenvalues of h J there.
    largest_step: h up to which no mode grows that the flow does not expand; None without R. lipschitz: ||h J||. broken: where
        NaN or Inf appears first, in words, or None. unsolved: share of images with an equation unsolved, or None.
    advice: every cause with its block and what to try, a tuple of sentences.
    growth: over all steps of the block, |R|^substeps at its largest; the flow's without R.
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
    advice: tuple[str, ...]
    growth: float | None = None

    def __str__(self) -> str:
        happened = [f"NaN or Inf appears {self.broken}"] if self.broken else []
        if self.unsolved:
            happened.append(f"{100 * self.unsolved:.0f} % of the images leave an equation unsolved")
        opening = f"{' and '.join(happened)}. " if happened else ""
        if self.stage is None or self.rightmost is None:
            return f"{opening}{' '.join(self.advice)}"
        where = f"Stage {self.stage}, block {self.block} ({self.scheme}, h = {self.step_size:.3g}): "
        growth = (
            "no R(z), for the steps depend on the data"
            if self.amplification is None
            else (f"max |R(h\u03bb)| = {self.amplification:.3g}")
        )
        if self.amplification not in (None, self.growth):
            growth += f" in a step and {self.growth:.3g} over the block"
        largest = (
            ""
            if self.largest_step is None
            else (f", largest stable h {'unlimited' if self.largest_step == math.inf else f'= {self.largest_step:.2g}'}")
        )
        facts = f"{growth}, rightmost h\u03bb = {_number(self.rightmost)}, ||hJ|| = {self.lipschitz:.3g}{largest}. "
        return f"{opening}{where}{facts}{' '.join(self.advice)}"


def explain(net: nn.Module, x: State, *, dimension: int = 40) -> Explanation:
    """Where and why a network's states grow, or its equations stay unsolved.

    Args:
        net: Any module with `ODEStage`s, or a stage; its own precision and tolerances.
        x: Some images (B, ...), best those on which it fails.
        dimension: Of the Krylov spaces.

    Returns:
        An `Explanation` of the block with the largest growth |R(h lambda)|^substeps among those whose states are finite (for
        an adaptive scheme that of the flow), with every cause of growth on the way. Advice is given where the same analysis
        says that it helps: with the scheme, the steps or the field that is advised, the product of all blocks' growth falls.

    Raises:
        ValueError: See `places`.
    """
    with odenets.recorded(net) as passes:
        along = places(net, x)
    solved = odenets.Outcome.of(len(x), passes).converged
    unsolved = None if solved is None else 1 - solved.double().mean().item()
    broken = _first_broken(net, x, along)
    if broken == (along[0].stage, along[0].block):
        return Explanation(
            None,
            None,
            str(along[0].scheme),
            None,
            None,
            None,
            None,
            None,
            None,
            "before the first block",
            unsolved,
            (
                "The state there, or the field, is beyond range: weights or images are. Load an earlier "
                "checkpoint, lower the learning rate, or clip the gradients.",
            ),
        )
    sound = along if broken is None else [place for place in along if (place.stage, place.block) < broken]
    blocks = [modes_of(place, dimension, len(sound)) for place in sound]
    most = max(blocks, key=lambda block: (log_growth(block), block.z.real.max()))
    place, z, lipschitz = most.place, most.z, norm(most)
    rightmost, largest = complex(z[np.lexsort((abs(z), z.real))[-1]]), complex(z[abs(z).argmax()])
    R, step = None, None
    if place.scheme.has_R:
        R = float(growth_factors(place.scheme, z, 0).max())
        step = largest_stable_step(place.scheme, z / place.step_size, rounding=0).step
    where = broken and ("behind the last block" if broken[0] == math.inf else f"in stage {broken[0]}, block {broken[1]}")
    over_block = R if place.substeps == 1 and R is not None else times(log_growth(most))
    return Explanation(
        place.stage,
        place.block,
        str(place.scheme),
        place.step_size,
        R,
        rightmost,
        largest,
        step,
        lipschitz,
        where,
        unsolved,
        tuple(advice(blocks, most, broken, unsolved)),
        over_block,
    )


@torch.no_grad()
def _first_broken(net: nn.Module, x: State, along: list[Place]) -> tuple[float, int] | None:
    """(stage, block) where a state or its slope is first not finite; (inf, 0) behind all; None nowhere."""
    for place in along:
        if not (place.state.isfinite().all() and place.slope(place.state).isfinite().all()):
            return place.stage, place.block
    return None if net(x.clone()).isfinite().all() else (math.inf, 0)


def _number(z: complex) -> str:
    return f"{z.real:.3g}" if abs(z.imag) < 1e-12 * max(1, abs(z)) else f"{z.real:.3g}{z.imag:+.3g}i"
