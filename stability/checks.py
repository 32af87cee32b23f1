"""The checks of the audit, one function each: a `Case` in, a `Check` out."""
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from scipy.stats import binom
from torch import nn

from odenets import converged, stages, tightened
from stability.attacks import objective_named, pgd
from stability.judge import MISCLASSIFIED, SURVIVED, worst_case

JUDGE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Check:
    """One verdict: passed (None: does not apply), the figures it rests on, what they are held to, and why in a sentence."""

    name: str
    passed: bool | None
    figures: dict
    thresholds: dict
    reason: str

    def __str__(self):
        return f"{self.name}: {'n/a' if self.passed is None else 'passed' if self.passed else 'FAILED'}, {self.reason}"


@dataclass(frozen=True, eq=False)
class Case:
    """What is audited, and what several checks share; see `audit` for the fields."""

    net: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    threat: object
    steps: int
    many_steps: int
    seed: int
    batch_size: int

    def attack(self, **settings):
        """PGD as it is set here, from the same noise each time."""
        def attack(net, x, y, indices):
            generator = torch.Generator().manual_seed(self.seed)
            settings_ = {"threat": self.threat, "steps": self.steps, **settings}
            return pgd(net, x, y, generator=generator, indices=indices, batch_size=self.batch_size, **settings_)
        return attack

    def judged(self, attacks, threat=None):
        """What attacks break under the cold judge."""
        return worst_case(self.net, self.x, self.y, threat or self.threat, attacks, cold_judge(self.net), self.batch_size)

    @cached_property
    def white_box(self):
        """PGD with `steps` steps, then with `many_steps` on its survivors."""
        return self.judged([("few", self.attack()), ("many", self.attack(steps=self.many_steps))])

    @property
    def iterated(self):
        """The stages whose step is an iteration: only there can a gradient differ from autograd's."""
        return [stage for stage in stages(self.net).values() if stage.scheme.iterates]


def cold_judge(net, tol=JUDGE_TOLERANCE):
    """A judge for `worst_case`: solves anew to `tol` and trusts an image whose implicit solves all converged."""
    def judge(x):
        with tightened(net, tol):
            return net(x), converged(net)
    return judge


def allowed(share, count):
    """Most images out of `count` that a true share would give with 95 % probability."""
    return int(binom.ppf(0.95, count, share))


def zero_gradients(case):
    """Fails where the input gradient vanishes: attacks then stand still."""
    shares = {}
    for loss in ("cross_entropy", "margin"):
        gradient = _gradient(case.net, case.x, case.y, loss, case.batch_size)
        # Far below any honest gradient, and still far above the smallest float32: sign and direction are intact above it.
        shares[loss] = float((gradient.flatten(1).abs().amax(1) < 1e-20).double().mean())
    count = len(case.x)
    limit = allowed(0.02, count) / count
    worst = max(shares.values())
    return Check("zero_gradients", worst <= limit, shares, {"share": limit},
                 f"{worst:.1%} of the images have no input gradient to follow")


def finite_differences(case, directions=7, images=64):
    """Fails where the gradient that attacks use is not the derivative of the loss, by central differences.

    Along random signs d, <g, d> errs by about ||g - gradient||, so that a few directions measure its relative error. The
    median over them is taken because the forward pass of ie_skip holds the derivative of a ReLU and jumps at its kinks. In
    float64 on a copy where the network allows it, for steps small against the distance to the next kink; with the margin
    loss, which never saturates.
    """
    name, objective = "finite_differences", objective_named("margin")
    net, x = _in_double(case.net, case.x[:images])
    y, double = case.y[:images], x.dtype == torch.float64
    if case.iterated and not double:
        return Check(name, None, {}, {}, "no float64 copy could be made, and in float32 a step meets too many kinks of ReLUs")
    step, limit = (1e-6, 0.01) if double else (2e-3, 0.1)
    x = x.clamp(step, 1 - step)  # steps stay within the box, beyond which a network may clamp

    @torch.no_grad()
    def value(x):
        return objective(net(x), y).double()

    generator = torch.Generator().manual_seed(case.seed)
    with tightened(net, 1e-10 if double else JUDGE_TOLERANCE):
        centre, again, solved = value(x), value(x), converged(net)
        gradient = _gradient(net, x, y, "margin", images).double()
        signs = [(2 * torch.randint(2, x.shape, generator=generator) - 1).to(x) for _ in range(directions)]
        slopes = torch.stack([value(x + step * d) - value(x - step * d) for d in signs]) / (2 * step)
    if not torch.equal(centre, again):
        return Check(name, False, {"spread": float((centre - again).abs().max())}, {"spread": 0.0},
                     "the network gives different logits for the same image, so that no gradient is its derivative")
    errors = (slopes - torch.stack([(gradient * d).flatten(1).sum(1) for d in signs])).abs()
    # Relative to the larger of the two derivatives, so that a gradient of zero can fail; rounding is given away.
    scale = torch.maximum(gradient.flatten(1).norm(dim=1), slopes.abs().median(0)[0]).clamp_min(1e-300)
    noise = 100 * torch.finfo(x.dtype).eps * (1 + centre.abs()) / step
    error = ((errors - noise).clamp_min(0) / scale).median(0)[0]
    error = error[solved] if solved is not None else error
    if not len(error):
        return Check(name, None, {"images": 0}, {}, "no image has all its equations solved")
    count, median, wrong = len(error), float(error.median()), int((error > limit).sum())
    return Check(name, wrong <= allowed(0.05, count), {"median_error": median, "share_wrong": wrong / count, "images": count},
                 {"error": limit, "share_wrong": allowed(0.05, count) / count},
                 f"the input gradient is off finite differences by {median:.2g} (median, relative), by more than {limit:g} on "
                 f"{wrong} of {count} images")


def exact_gradient(case, images=64, limit=0.999, loose_limit=0.98):
    """Fails where the gradient in use is not the exact one of the scheme, or not that of its equations solved accurately."""
    if not case.iterated:
        return Check("exact_gradient", None, {}, {}, "no stage iterates, so that autograd's gradient is the exact one")
    gradient = partial(_gradient, case.net, case.x[:images], case.y[:images], "margin", case.batch_size)
    found = {"in_use": gradient()}
    for name in ("exact", "detached", "unrolled"):
        with configured(case.net, gradient=name):
            found[name] = gradient()
    exact = found.pop("exact")
    figures = {}
    for name, other in found.items():
        figures[f"{name}_cosine"] = _median_cosine(other, exact)
        figures[f"{name}_sign_agreement"] = float((other.sign() == exact.sign()).double().mean())
    with configured(case.net, gradient="exact"), tightened(case.net, JUDGE_TOLERANCE):
        figures["tolerance_cosine"] = _median_cosine(exact, gradient())
    passed = figures["in_use_cosine"] >= limit and figures["tolerance_cosine"] >= loose_limit
    return Check("exact_gradient", passed, figures, {"in_use_cosine": limit, "tolerance_cosine": loose_limit},
                 f"cosine with the exact gradient (median): in use {figures['in_use_cosine']:.4f}, detached "
                 f"{figures['detached_cosine']:.4f}, unrolled {figures['unrolled_cosine']:.4f}; the exact one at the tolerance in "
                 f"use against {JUDGE_TOLERANCE:g}: {figures['tolerance_cosine']:.4f}")


def _median_cosine(a, b):
    return float(nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), eps=1e-300).median())


def solver(case):
    """Fails where adversarial images leave equations unsolved: their logits then mean nothing."""
    if not any(stage.scheme.implicit for stage in case.iterated):
        return Check("solver", None, {}, {}, "no stage solves an equation to a tolerance")
    count, untrusted, limit = len(case.x), int(case.white_box.untrusted.sum()), allowed(0.02, len(case.x))
    return Check("solver", untrusted <= limit, {"share_unconverged": untrusted / count}, {"share_unconverged": limit / count},
                 f"{untrusted} of {count} adversarial images have an equation unsolved at tolerance {JUDGE_TOLERANCE:g}; "
                 "they count as broken")


def more_steps(case):
    """Fails where a long attack breaks many images that the usual one did not: the usual one had not converged."""
    count, found, limit = len(case.x), int((case.white_box.broken_by == 1).sum()), allowed(0.02, len(case.x))
    robust = float(case.white_box.robust.double().mean())
    return Check("more_steps", found <= limit,
                 {f"robust_{case.steps}": robust + found / count, f"robust_{case.many_steps}": robust, "found": found / count},
                 {"found": limit / count},
                 f"PGD with {case.many_steps} steps breaks {found} of {count} images that {case.steps} steps left standing")


def large_epsilon(case):
    """Fails where images survive although the ball holds every image there is: the attack is then led astray."""
    name, count = "large_epsilon", len(case.x)
    with torch.no_grad():
        predicted = torch.cat([case.net(part).argmax(1) for part in case.x.split(case.batch_size)])
    if not bool((predicted == case.y).any()) or len(predicted.unique()) == 1:
        return Check(name, None, {}, {}, "the network tells none of these images apart, so that there is nothing to break")
    everything = replace(case.threat, epsilon=float(case.threat.size(torch.ones_like(case.x[:1]))))
    # From the images themselves: a random start in so large a ball is an attack that needs no gradient.
    attack = partial(case.attack, threat=everything, random_start=False)
    robust = int(case.judged([("short", attack()), ("long", attack(steps=100, loss="margin"))], everything).robust.sum())
    limit = allowed(0.01, count)
    return Check(name, robust <= limit, {"epsilon": everything.epsilon, "robust": robust / count}, {"robust": limit / count},
                 f"{robust} of {count} images survive PGD at epsilon {everything.epsilon:.3g}, where any image is allowed")


def transfer(case):
    """Fails where images crafted on the explicit twin, same weights, break more than the white-box attack does."""
    if not case.iterated:
        return Check("transfer", None, {}, {}, "the network is its own explicit twin")
    with configured(case.net, scheme="explicit"):
        crafted = case.attack()(case.net, case.x, case.y, torch.arange(len(case.x)))
    verdict = case.judged([("transfer", lambda net, x, y, indices: crafted[indices.to(crafted.device)])])
    count, by = len(case.x), case.white_box.broken_by
    white_box = int(((by == MISCLASSIFIED) | (by == 0)).sum())
    broken = int((verdict.broken_by != SURVIVED).sum())
    limit = allowed(0.02, count)
    return Check("transfer", broken - white_box <= limit,
                 {"robust_white_box": 1 - white_box / count, "robust_transfer": 1 - broken / count},
                 {"excess": limit / count},
                 f"images crafted on the explicit twin leave {count - broken} of {count} standing, the white-box attack "
                 f"{count - white_box}")


def _gradient(net, x, y, loss, batch_size):
    parts = []
    for x_part, y_part in zip(x.split(batch_size), y.split(batch_size)):
        point = x_part.detach().clone().requires_grad_()
        parts.append(torch.autograd.grad(objective_named(loss)(net(point), y_part).sum(), point)[0])
    return torch.cat(parts)


@contextmanager
def configured(net, **settings):
    """Within the context every stage has other settings (see `ODEStage.configure`); restored afterwards."""
    before = {stage: {key: getattr(stage, key) for key in settings} for stage in stages(net).values()}
    try:
        for stage in before:
            stage.configure(**settings)
        yield net
    finally:
        for stage, settings in before.items():
            stage.configure(**settings)


def _in_double(net, x):
    """A float64 copy of the network and the images; where it cannot be had, both as they are."""
    try:
        copy = deepcopy(net).double()
        with torch.no_grad():
            usable = copy(x[:1].double()).dtype == torch.float64
    except (RuntimeError, TypeError, NotImplementedError):
        usable = False
    return (copy, x.double()) if usable else (net, x)
