"""Scalars of a block that may predict robustness: each with one definition, its formula and its source.

All are of h J, the Jacobian of h f at the state that enters a block, or of the scheme's R there. Means, percentiles and
shares are over all eigenvalues, and only where all are known: over Ritz values they would be wrong by a factor.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stability.errors import InputError
from stability.methods.regions import ROUNDING
from stability.network.blocks import BlockDynamics
from stability.specs import canonical, find_own, is_own
from stability.types import PerSample


@dataclass(frozen=True)
class Predictor:
    """A scalar of a block.

    name: as in tables. formula: in TeX. meaning: a line. source: book or article. value: BlockDynamics -> (samples,), or None
        where unknown.
    """

    name: str
    formula: str
    meaning: str
    source: str
    value: Callable[[BlockDynamics], PerSample | None]


def _of_growth(reduce: Callable[[Tensor], Tensor]) -> Callable[[BlockDynamics], PerSample | None]:
    return lambda block: None if block.growth is None else reduce(block.growth)


def _excess(block: BlockDynamics) -> PerSample | None:
    if block.amplification is None:
        return None
    # A mode that decays slower than the flow's does no harm: growth counts from 1 on.
    return (block.amplification.clamp_min(1e-300).log() - block.ritz.real.clamp_min(0)).amax(1).clamp_min(0)


_FORMULAS = "Hairer & Wanner II (1996), section IV.2"
PREDICTORS = {
    entry.name: entry
    for entry in (
        Predictor(
            "step_norm",
            r"\|\partial y_{n+1}/\partial y_n\|_2",
            "norm of one step's Jacobian",
            "Hairer & Wanner II (1996), section IV.11",
            lambda block: block.step_norm,
        ),
        Predictor(
            "max_abs_R",
            r"\max_i|R(h\lambda_i)|",
            "largest growth factor, over Ritz values",
            _FORMULAS,
            lambda block: None if block.amplification is None else block.amplification.amax(1),
        ),
        Predictor(
            "log_norm",
            r"\mu_2(hJ)",
            "logarithmic norm: the fastest that two solutions part",
            "Soderlind (2006), BIT 46",
            lambda block: block.log_norm,
        ),
        Predictor(
            "max_real",
            r"\max_i\,\mathrm{Re}\,h\lambda_i",
            "rightmost eigenvalue, over Ritz values",
            _FORMULAS,
            lambda block: block.ritz.real.amax(1),
        ),
        Predictor(
            "spectral_radius",
            r"\max_i|h\lambda_i|",
            "spectral radius, over Ritz values",
            _FORMULAS,
            lambda block: block.ritz.abs().amax(1),
        ),
        Predictor(
            "lipschitz",
            r"\|hJ\|_2",
            "Lipschitz constant of h f at the state",
            "Szegedy et al. (2014), Intriguing properties of neural networks",
            lambda block: block.lipschitz,
        ),
        Predictor(
            "kreiss",
            r"\sup_{\mathrm{Re}\,z>w}(\mathrm{Re}\,z-w)\|(z-hJ)^{-1}\|_2,\ w=\max_i\mathrm{Re}\,h\lambda_i",
            "Kreiss constant beyond the rightmost eigenvalue, from below",
            "Trefethen & Embree (2005), chapter 18",
            lambda block: block.kreiss,
        ),
        Predictor(
            "step_radius",
            r"\rho(\partial y_{n+1}/\partial y_n)",
            "spectral radius of one step's Jacobian",
            _FORMULAS,
            lambda block: block.step_radius,
        ),
        Predictor(
            "order_star_excess",
            r"\max_i(\log|R(h\lambda_i)|-\max(0,\mathrm{Re}\,h\lambda_i))_+",
            "growth of the step beyond that of the flow, over Ritz values",
            "Wanner, Hairer, Norsett (1978), BIT 18",
            _excess,
        ),
        Predictor(
            "largest_stable_h",
            r"\sup\{H: |R(h\lambda_i)|\leq 1,\ 0<h\leq H,\ \mathrm{Re}\,\lambda_i\leq 0\}",
            "largest stable step, over Ritz values that do not expand",
            _FORMULAS,
            lambda block: block.largest_step,
        ),
        Predictor(
            "mean_abs_R",
            r"\frac{1}{n}\sum_i|R(h\lambda_i)|",
            "mean growth factor, all eigenvalues",
            _FORMULAS,
            _of_growth(lambda growth: growth.mean(1)),
        ),
        Predictor(
            "p95_abs_R",
            r"q_{0.95}\{|R(h\lambda_i)|\}",
            "95th percentile of the growth factor, all eigenvalues",
            _FORMULAS,
            _of_growth(lambda growth: growth.quantile(0.95, dim=1)),
        ),
        Predictor(
            "fraction_outside",
            r"\frac{1}{n}\#\{i: |R(h\lambda_i)|>1\}",
            "share of eigenvalues outside the region",
            _FORMULAS,
            _of_growth(lambda growth: (growth > 1 + ROUNDING).double().mean(1)),
        ),
        Predictor(
            "expanding_share",
            r"\frac{1}{n}\#\{i: \mathrm{Re}\,\lambda_i>0\}",
            "share of eigenvalues where every consistent scheme grows",
            _FORMULAS,
            lambda block: block.expanding_share,
        ),
    )
}


def get_predictor(spec: str | Predictor) -> Predictor:
    """The predictor of a name; "path/to/file.py:NAME" is a `Predictor`, or a function block -> (samples,), called by that name.

    Raises:
        InputError: No such predictor; code that fails, with the user's line; a function of another signature.
    """
    if isinstance(spec, Predictor):
        return spec
    if not is_own(spec):
        if spec not in PREDICTORS:
            raise InputError(f"unknown predictor {spec!r}; choose from {', '.join(PREDICTORS)}, or give path/to/file.py:NAME")
        return PREDICTORS[spec]
    part = find_own(spec, "predictor")
    if isinstance(part.found, Predictor):
        return replace(part.found, name=part.spec)
    declared = part.declared(("block",))
    given = part.settings(declared)
    name = canonical(part.spec, {key: (given.get(key, default), default) for key, default in declared.items()})
    return Predictor(name, "", name, "", lambda block: part.found(block=block, **given))


def predictors(block: BlockDynamics, further: Iterable[Predictor] = ()) -> dict[str, PerSample]:
    """{name: (samples,) tensor} of a `BlockDynamics`, without those that are unknown for its scheme or its size."""
    found = {entry.name: entry.value(block) for entry in (*PREDICTORS.values(), *further)}
    return {name: value for name, value in found.items() if value is not None}


def lipschitz_bound(blocks: list[BlockDynamics]) -> PerSample | None:
    """(B,) upper bound of the local Lipschitz constant of the stages in sequence: the product of their steps' norms.

    Of blocks with one step each (else the norm of the first step stands for the others, and it is no bound). None with a
    multistep scheme. Layers between the stages are left out.

    Source: Szegedy et al. (2014), Intriguing properties of neural networks.
    """
    norms = [block.step_norm for block in blocks if block.step_norm is not None and block.substeps == 1]
    return torch.stack(norms).prod(0) if len(norms) == len(blocks) else None
