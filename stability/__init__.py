"""How perturbations grow: of a scheme (regions), of a linearised network (spectra), in the worst case (attacks)."""

from stability.attacks.auto_pgd import apgd
from stability.attacks.autoattack import autoattack
from stability.attacks.catalogue import Attack, get_attack, list_attacks
from stability.attacks.catalogue import shorthands as attack_shorthands
from stability.attacks.gradient import fgsm, pgd
from stability.attacks.judge import WorstCase, worst_case
from stability.attacks.random_search import noise, square
from stability.attacks.threats import L2, Linf
from stability.linear.arnoldi import krylov_memory
from stability.linear.jacobian import dense_jacobians, jacobian
from stability.linear.kreiss import kreiss_constant
from stability.linear.normality import departure_from_normality
from stability.linear.numerical_range import numerical_range
from stability.linear.pseudospectra import pseudospectrum
from stability.linear.singular import singular_values
from stability.linear.spectra import log_norm, ritz_values, spectral_norm, spectrum
from stability.masking.audit import audit
from stability.masking.roots import path_dependent
from stability.masking.subject import before_the_judge, cold_judge
from stability.methods.contraction import Contraction, contraction
from stability.methods.regions import growth_factors, largest_stable_step, region, snapped
from stability.network.blocks import BlockDynamics, block_dynamics, dynamics, stage_exponents
from stability.network.explain import explain
from stability.network.growth import growth, lyapunov_exponents
from stability.network.penalty import log_norm_penalty
from stability.network.places import places
from stability.network.predictors import PREDICTORS, lipschitz_bound, predictors

__all__ = [
    "Attack",
    "BlockDynamics",
    "Contraction",
    "L2",
    "Linf",
    "PREDICTORS",
    "WorstCase",
    "apgd",
    "attack_shorthands",
    "audit",
    "autoattack",
    "before_the_judge",
    "block_dynamics",
    "cold_judge",
    "contraction",
    "dense_jacobians",
    "departure_from_normality",
    "dynamics",
    "explain",
    "fgsm",
    "get_attack",
    "growth",
    "growth_factors",
    "jacobian",
    "kreiss_constant",
    "krylov_memory",
    "largest_stable_step",
    "lipschitz_bound",
    "list_attacks",
    "log_norm",
    "log_norm_penalty",
    "lyapunov_exponents",
    "noise",
    "numerical_range",
    "path_dependent",
    "pgd",
    "places",
    "predictors",
    "pseudospectrum",
    "region",
    "ritz_values",
    "singular_values",
    "snapped",
    "spectral_norm",
    "spectrum",
    "square",
    "stage_exponents",
    "worst_case",
]
