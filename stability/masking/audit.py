"""Is the robustness real, or are the gradients masked? A list of checks, each able to fail."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

import odenets
from odenets.schemes import Scheme
from stability.attacks.images import check_images, check_logits, evaluated, evaluating
from stability.attacks.losses import input_gradient
from stability.attacks.threats import check_threat
from stability.errors import InputError
from stability.masking.attack_checks import black_box, large_epsilon, more_steps, moved, other_losses, transfer
from stability.masking.forward_checks import connected_root, deterministic, solver, tolerance
from stability.masking.gradient_checks import exact_gradient, finite_differences, zero_gradients
from stability.masking.subject import Case, Check
from stability.random import given_or_new
from stability.types import Images, Labels, Threat


@dataclass(frozen=True)
class Audit:
    """Outcome of an audit: its checks, in the order of `CHECKS`. `str` gives one line for each."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """No check failed; checks that do not apply do not count."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


CHECKS = {
    check.__name__: check
    for check in (
        deterministic,
        zero_gradients,
        finite_differences,
        exact_gradient,
        solver,
        connected_root,
        tolerance,
        moved,
        more_steps,
        other_losses,
        large_epsilon,
        black_box,
        transfer,
    )
}
# Cheap ones that differ: the predictor, the accurate flow, the paper's correction. What a net runs itself is left out.
SOURCES = ("explicit_euler", "rk4", "ie_skip")


def audit(
    net: nn.Module,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    steps: int = 20,
    many_steps: int | Iterable[int] = 200,
    checks: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
    queries: int = 200,
    sources: Iterable[str | Scheme] = SOURCES,
) -> Audit:
    """Look for the marks of masked gradients: a network that only seems robust because attacks are led astray.

    Thresholds are shares of the images; a check fails when more images offend than such a share would produce by chance
    (one-sided binomial, 5 %), so that a single image in a small batch proves nothing. A few dozen correctly classified
    images are enough.

    Args:
        net: Any module x -> logits; `ODEStage`s in it are judged by a cold re-solve at tolerance 1e-6. It is left as it
            was: modes, schemes, gradients, parameters.
        x, y: Images in [0, 1] and labels, as for `pgd`.
        threat: `Linf` or `L2`, the one under which robustness is claimed.
        steps, many_steps: PGD steps that must already find nearly all that many more find. `many_steps` may be several
            numbers, ascending, such as (100, 1000): each attacks what the one before left.
        checks: Names from `CHECKS`; None for all.
        generator: Draws one number, the seed of all that is random here; by default a new generator with seed 0.
        batch_size: Images evaluated at once.
        queries: Evaluations that the black-box attack may spend on an image.
        sources: Schemes on whose nets, same weights and substeps, images are crafted that must not transfer;
            `odenets.list_schemes()` for all there are (minutes).

    Returns:
        An `Audit`.

    Raises:
        ValueError: Images outside [0, 1], labels out of range, NaN in the logits, an unknown check or scheme, steps that do
            not ascend, net not a module.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"audit takes a torch.nn.Module, got {type(net).__name__}")
    unknown = [name for name in checks or () if name not in CHECKS]
    if unknown:
        raise InputError(f"unknown check {unknown[0]!r}; choose from {', '.join(CHECKS)}")
    many_steps = (many_steps,) if isinstance(many_steps, int) else tuple(many_steps)
    if not many_steps or any(more <= less for less, more in zip((steps, *many_steps), many_steps)):
        raise InputError(f"many_steps must ascend from steps on, got {many_steps} after {steps}")
    schemes = tuple(map(odenets.get_scheme, sources))
    x = check_images(x, y)
    check_threat(threat)
    generator = given_or_new(generator)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    with evaluating(net), torch.inference_mode(False), torch.enable_grad():
        x, y = x.detach().clone(), y.clone()
        first = x[:1].clone().requires_grad_()
        logits = evaluated(net, first)
        check_logits(logits, y[:1])
        chosen = [name for name in CHECKS if checks is None or name in checks]
        if input_gradient(logits, first) is None:
            return Audit(tuple(_without_gradient(name) for name in chosen))
        case = Case(net, x, y, threat, steps, many_steps, queries, schemes, seed, batch_size)
        return Audit(tuple(CHECKS[name](case) for name in chosen))


def _without_gradient(name: str) -> Check:
    reason = "the logits do not depend on the images as far as autograd can see, so that no gradient attack can work"
    return Check(name, False if name in ("zero_gradients", "finite_differences") else None, {}, {}, reason)
