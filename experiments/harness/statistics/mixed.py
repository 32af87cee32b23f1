"""A mixed model of robust accuracy: how many points go with a predictor, where schemes and seeds are samples.

Beside the rank correlations of `relation`: they say whether, this says how much. It needs statsmodels, and says so where it is
not there.
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit
from scipy.stats import rankdata

from experiments.harness.statistics.association import FEWEST
from experiments.harness.statistics.estimates import LEVEL, Estimate
from odenets.errors import InputError

ABSENT = "statsmodels is not installed (pip install 'odenets[mixed]')"
SINGULAR = "the fit is singular"
BOUNDARY = 1e-4  # a share of the variance below which a component counts as nought


@dataclass(frozen=True)
class MixedEffect:
    """Of one predictor.

    estimate: of the slope, a share of the images for a standard deviation of the predictor; None where there is none. scheme,
    seed, rest: variances. note: why there is no estimate, or what limits it; empty where nothing does.
    """

    estimate: Estimate | None
    scheme: float | None = None
    seed: float | None = None
    rest: float | None = None
    note: str = ""


def mixed_effect(
    x: ArrayLike,
    y: ArrayLike,
    given: ArrayLike | None,
    strata: Sequence[Hashable],
    schemes: Sequence[Hashable],
    seeds: Sequence[Hashable],
    level: float = LEVEL,
) -> MixedEffect:
    """The slope of y on x by REML, with crossed random effects of scheme and seed and fixed ones of the stratum.

        y(net) = stratum + slope * score(x) + slope' * score(given) + a(scheme) + b(seed) + e

    Scores are normal scores of the ranks within a stratum: a unit is a standard deviation, and a blow-up is a last place. The
    interval is Student's with the schemes less the slopes and one as degrees of freedom: a predictor tells schemes apart, and
    of these there are few, whatever the number of nets (containment).

    Args:
        x, y, given: A number for each net; nets with a NaN in one of them are left out. given: what the slope shall not
            stand for, such as clean accuracy; None for nothing.
        strata: Such as (field, training).
        schemes, seeds: Of each net.

    Source: Laird & Ware (1982), Biometrics 38; Pinheiro & Bates (2000), Mixed-Effects Models, section 2.4.2, for the degrees
    of freedom. In a balanced table with x constant within schemes this is least squares on the means of schemes.
    """
    parts = {"x": x, "y": y} | ({} if given is None else {"given": given})
    values = {name: np.asarray(part, dtype=float) for name, part in parts.items()}
    labels = [np.array([str(label) for label in part]) for part in (strata, schemes, seeds)]
    if len({len(part) for part in (*values.values(), *labels)}) != 1:
        raise InputError(
            f"a mixed model needs numbers and labels for each net, got lengths {[len(v) for v in values.values()]}"
        )
    known = np.logical_and.reduce([~np.isnan(part) for part in values.values()]) & np.isfinite(values["y"])
    stratum, scheme, seed = (label[known] for label in labels)
    if len(set(scheme)) < FEWEST:
        return MixedEffect(None, note=f"{len(set(scheme))} schemes are too few")
    scores = [_scores(values[name][known], stratum) for name in values if name != "y"]
    design = np.column_stack([stratum[:, None] == np.unique(stratum), *scores]).astype(float)
    if np.linalg.matrix_rank(design) < design.shape[1] or len(design) <= design.shape[1]:
        return MixedEffect(None, note=f"{SINGULAR}: the predictor cannot be told from what else is in the model")
    if find_spec("statsmodels") is None:
        return MixedEffect(None, note=ABSENT)
    return _fitted(values["y"][known], design, scheme, seed, len(set(scheme)) - 1 - len(scores), len(set(stratum)), level)


def _fitted(y: NDArray, design: NDArray, scheme: NDArray, seed: NDArray, degrees: int, at: int, level: float) -> MixedEffect:
    """By statsmodels, whose warnings are of no use to a reader of the page: what they are about is asked of the fit."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    # A component that the data say is nought leaves the likelihood without a maximum inside: the model does without it then.
    for left_out in ((), ("seed",), ("scheme",)):
        groups = {"scheme": scheme, "seed": seed}
        groups = {name: labels for name, labels in groups.items() if name not in left_out and len(set(labels)) > 1}
        known = {name: np.unique(labels) for name, labels in groups.items()}
        matrices = [[(labels[:, None] == known[name]).astype(float)] for name, labels in groups.items()]
        columns = [[[str(value) for value in values]] for values in known.values()]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scale = y.std()
                structure = VCSpec(list(known), columns, matrices)
                fit = MixedLM(y / scale, design, np.ones(len(y)), exog_vc=structure).fit(reml=True)
                slope, error = float(fit.fe_params[at] * scale), float(fit.bse_fe[at] * scale)
                parts = dict(zip(known, (float(value) * scale**2 for value in fit.vcomp)))
        except (np.linalg.LinAlgError, ValueError):
            continue
        if fit.converged and np.isfinite([slope, error]).all() and error > 0:
            break
    else:
        return MixedEffect(None, note=f"{SINGULAR}: the likelihood has no maximum that was found")
    rest = float(fit.scale * scale**2)
    total = rest + sum(parts.values())
    nought = [name for name in ("scheme", "seed") if parts.get(name, 0.0) < BOUNDARY * total]
    note = f"no variance between {' and '.join(f'{name}s' for name in nought)} was found" if nought else ""
    half = float(stdtrit(degrees, (1 + level) / 2)) * error
    estimate = Estimate(slope, slope - half, slope + half, len(set(scheme)), "schemes", level)
    return MixedEffect(estimate, parts.get("scheme", 0.0), parts.get("seed", 0.0), rest, note)


def _scores(values: NDArray, strata: NDArray) -> NDArray:
    """Normal scores of the ranks within strata, of standard deviation 1 over all nets."""
    found = np.zeros(len(values))
    for stratum in np.unique(strata):
        own = strata == stratum
        found[own] = ndtri((rankdata(values[own].round(12)) - 0.5) / own.sum())
    spread = found.std()
    return found / spread if spread > 0 else found
