"""How perturbations grow: of a scheme (regions), of a linearised network (spectra), in the worst case (attacks)."""
from stability.apgd import apgd
from stability.attacks import fgsm, pgd
from stability.audit import audit
from stability.case import before_the_judge, cold_judge
from stability.jacobian import jacobian
from stability.judge import worst_case
from stability.regions import largest_stable_step, region
from stability.spectra import log_norm, ritz_values, spectral_norm, spectrum
from stability.threats import L2, Linf

__all__ = ["L2", "Linf", "apgd", "audit", "before_the_judge", "cold_judge", "fgsm", "jacobian", "largest_stable_step",
           "log_norm", "pgd", "region", "ritz_values", "spectral_norm", "spectrum", "worst_case"]
