"""How perturbations grow: of a scheme (regions), of a linearised network (spectra), in the worst case (attacks)."""

from stability.attacks.auto_pgd import apgd
from stability.attacks.autoattack import autoattack
from stability.attacks.catalogue import Attack, get_attack, list_attacks
from stability.attacks.catalogue import shorthands as attack_shorthands
from stability.attacks.gradient import fgsm, pgd
from stability.attacks.judge import WorstCase, worst_case
from stability.attacks.random_search import noise, square
from stability.attacks.threats import L2, Linf
from stability.certificates.certify import Budget, Certificate, certify
from stability.certificates.tightness import kept_gradient
from stability.linear.arnoldi import Memory, krylov_memory
from stability.linear.eigenpairs import Spectrum
from stability.linear.jacobian import dense_jacobians, jacobian
from stability.linear.kreiss import Kreiss, kreiss_constant
from stability.linear.normality import Departure, departure_from_normality
from stability.linear.numerical_range import NumericalRange, numerical_range
from stability.linear.pseudospectra import Pseudospectrum, pseudospectrum
from stability.linear.singular import SingularValues, singular_values
from stability.linear.spectra import log_norm, ritz_values, spectral_norm, spectrum
from stability.masking.audit import Audit, audit
from stability.masking.roots import path_dependent
from stability.masking.subject import Check, before_the_judge, cold_judge
from stability.methods.contraction import Contraction, contraction
from stability.methods.regions import Region, StableStep, growth_factors, largest_stable_step, region, snapped
from stability.network.blocks import BlockDynamics, block_dynamics, dynamics, stage_exponents
from stability.network.explain import Explanation, explain
from stability.network.growth import Exponents, Growth, growth, lyapunov_exponents
from stability.network.penalty import log_norm_penalty
from stability.network.places import Place, places
from stability.network.predictors import PREDICTORS, Predictor, get_predictor, lipschitz_bound, predictors

__all__ = [
    "Attack",
    "Audit",
    "BlockDynamics",
    "Check",
    "Budget",
    "Certificate",
    "Contraction",
    "Departure",
    "Explanation",
    "Exponents",
    "Growth",
    "Kreiss",
    "L2",
    "Linf",
    "Memory",
    "NumericalRange",
    "PREDICTORS",
    "Place",
    "Predictor",
    "Pseudospectrum",
    "Region",
    "SingularValues",
    "Spectrum",
    "StableStep",
    "WorstCase",
    "apgd",
    "attack_shorthands",
    "audit",
    "autoattack",
    "before_the_judge",
    "block_dynamics",
    "certify",
    "cold_judge",
    "contraction",
    "dense_jacobians",
    "departure_from_normality",
    "dynamics",
    "explain",
    "fgsm",
    "get_attack",
    "get_predictor",
    "growth",
    "growth_factors",
    "jacobian",
    "kept_gradient",
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
