"""How perturbations grow: of a scheme (regions), of a linearised network (spectra), in the worst case (attacks)."""
from stability.apgd import apgd
from stability.arnoldi import krylov_memory
from stability.attacks import fgsm, pgd
from stability.audit import audit
from stability.black_box import noise, square
from stability.case import before_the_judge, cold_judge
from stability.dynamics import BlockDynamics, block_dynamics, dynamics, stage_exponents
from stability.explain import explain
from stability.growth import growth, lyapunov_exponents
from stability.jacobian import dense_jacobians, jacobian
from stability.judge import WorstCase, worst_case
from stability.kreiss import kreiss_constant
from stability.normality import departure_from_normality
from stability.numerical_range import numerical_range
from stability.penalty import log_norm_penalty
from stability.predictors import PREDICTORS, lipschitz_bound, predictors
from stability.pseudospectra import pseudospectrum
from stability.reference import autoattack
from stability.regions import largest_stable_step, region
from stability.singular import singular_values
from stability.spectra import log_norm, ritz_values, spectral_norm, spectrum
from stability.threats import L2, Linf
from stability.walk import places

__all__ = ["BlockDynamics", "L2", "Linf", "PREDICTORS", "WorstCase", "apgd", "audit", "autoattack",
           "before_the_judge", "block_dynamics", "cold_judge", "dense_jacobians", "departure_from_normality",
           "dynamics", "explain", "fgsm", "growth", "jacobian", "kreiss_constant", "krylov_memory",
           "largest_stable_step", "lipschitz_bound", "log_norm", "log_norm_penalty", "lyapunov_exponents", "noise",
           "numerical_range", "pgd", "places", "predictors", "pseudospectrum", "region", "ritz_values",
           "singular_values", "spectral_norm", "spectrum", "square", "stage_exponents", "worst_case"]
