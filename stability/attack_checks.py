"""Checks of the audit that compare attacks, one function each: a `Case` in, a `Check` out."""
from dataclasses import replace
from functools import partial

import torch

from odenets import stages
from stability.case import JUDGE_TOLERANCE, Check, allowed, configured
from stability.judge import MISCLASSIFIED, SURVIVED


def solver(case):
    """Fails where adversarial images leave equations unsolved: their logits then mean nothing."""
    if not any(stage.scheme.implicit for stage in case.iterated):
        return Check("solver", None, {}, {}, "no stage solves an equation to a tolerance")
    count, untrusted, limit = len(case.x), int(case.white_box.untrusted.sum()), allowed(0.02, len(case.x))
    return Check("solver", untrusted <= limit,
                 {"share_unconverged": untrusted / count}, {"share_unconverged": limit / count},
                 f"{untrusted} of {count} adversarial images have an equation unsolved at tolerance "
                 f"{JUDGE_TOLERANCE:g}; they count as broken")


def more_steps(case):
    """Fails where a long attack breaks many images that the usual one did not: the usual one had not converged."""
    count, found, limit = len(case.x), int((case.white_box.broken_by == 1).sum()), allowed(0.02, len(case.x))
    robust = float(case.white_box.robust.double().mean())
    return Check("more_steps", found <= limit,
                 {f"robust_{case.steps}": robust + found / count, f"robust_{case.many_steps}": robust,
                  "found": found / count},
                 {"found": limit / count},
                 f"PGD with {case.many_steps} steps breaks {found} of {count} images that {case.steps} left standing")


def large_epsilon(case):
    """Fails where images survive although the ball holds every image there is: the attack is then led astray."""
    name, count = "large_epsilon", len(case.x)
    with torch.no_grad():
        predicted = torch.cat([case.net(part).argmax(1) for part in case.x.split(case.batch_size)])
        constant = len(predicted.unique()) == 1 and bool((case.net(_probes(case)).argmax(1) == predicted[0]).all())
    if constant or not bool((predicted == case.y).any()):
        return Check(name, None, {}, {}, "the network tells none of these images apart: there is nothing to break")
    everything = replace(case.threat, epsilon=float(case.threat.size(torch.ones_like(case.x[:1]))))
    # From the images themselves: a random start in so large a ball is an attack that needs no gradient.
    attack = partial(case.attack, threat=everything, random_start=False)
    verdict = case.judged([("short", attack()), ("long", attack(steps=100, loss="margin"))], everything)
    robust = int(verdict.robust.sum())
    limit = allowed(0.01, count)
    return Check(name, robust <= limit,
                 {"epsilon": everything.epsilon, "robust": robust / count}, {"robust": limit / count},
                 f"{robust} of {count} images survive PGD at epsilon {everything.epsilon:.3g}, where all is allowed")


def _probes(case, count=8):
    """Images unlike the sample, of its shape: even greys, and uniform noise. Images of one class need not betray a class."""
    shape = (count, *case.x.shape[1:])
    grey = torch.linspace(0, 1, count).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(case.seed))
    return torch.cat([grey, noise]).to(case.x)


def transfer(case):
    """Fails where images crafted on the explicit twin, same weights and substeps, break more than the white-box attack."""
    if all(stage.scheme.name == "explicit_euler" for stage in stages(case.net).values()):
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
                 f"images crafted on the explicit twin leave {count - broken} of {count} standing, the white-box "
                 f"attack {count - white_box}")
