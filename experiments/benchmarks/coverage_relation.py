"""What the verdicts on predictors are worth: simulated studies, for coverage.py and the tests."""

import numpy as np
from numpy.typing import NDArray

from experiments.harness.statistics.relation import Nets, relations, within_groups


def study(
    random: np.random.Generator, schemes: int, seeds: int, predictors: int, strength: float
) -> tuple[dict[str, NDArray], Nets]:
    """({predictor: values}, nets) where the predictors follow, in noise, what robustness follows by `strength`."""
    scheme, seed = np.repeat(np.arange(schemes), seeds), np.tile(np.arange(seeds), schemes)
    cause, other = random.standard_normal((2, schemes))
    robust = (strength * cause + np.sqrt(1 - strength**2) * other)[scheme] + 0.5 * random.standard_normal(len(scheme))
    known = {
        f"predictor {i}": -(0.8 * cause + 0.6 * random.standard_normal(schemes))[scheme]
        + 0.3 * random.standard_normal(len(scheme))
        for i in range(predictors)
    }
    return known, Nets(robust, list(scheme), [0] * len(scheme), list(seed))


def claims(schemes: int, strength: float, draws: int, predictors: int = 8, seeds: int = 5, seed: int = 0) -> NDArray:
    """(share of studies with a predictor supported, mean share of predictors supported)."""
    random, found = np.random.default_rng(seed), []
    for _ in range(draws):
        known, nets = study(random, schemes, seeds, predictors, strength)
        said = [relation.verdict == "supported" for relation in relations(known, nets, given={}, expected={})]
        found.append((float(any(said)), float(np.mean(said))))
    return np.mean(found, 0)


def within(schemes: int, seeds: int, correlation: float, shared: float, draws: int, seed: int = 0) -> float:
    """Coverage of the correlation within schemes, where `shared` of the variance of nets is that of their seed."""
    random, found = np.random.default_rng(seed), []
    scheme, own = np.repeat(np.arange(schemes), seeds), np.tile(np.arange(seeds), schemes)

    def pair(size: int) -> tuple[NDArray, NDArray]:
        x, y = random.standard_normal((2, size))
        return x, correlation * x + np.sqrt(1 - correlation**2) * y

    for _ in range(draws):
        (common_x, common_y), (x, y) = pair(seeds), pair(len(scheme))
        x, y = (np.sqrt(shared) * c[own] + np.sqrt(1 - shared) * v for c, v in ((common_x, x), (common_y, y)))
        estimate = within_groups(x, y, list(scheme), list(scheme), list(own))
        assert estimate is not None  # every scheme has its seeds
        found.append((estimate.value, estimate.low, estimate.high))
    value, low, high = np.array(found).T
    return float(((low <= value.mean()) & (value.mean() <= high)).mean())
