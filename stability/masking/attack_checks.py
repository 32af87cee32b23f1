"""Checks of the audit that compare attacks, one function each: a `Case` in, a `Check` out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from odenets import stages
from odenets.schemes import Scheme
from stability.attacks.images import evaluated, indexed
from stability.attacks.judge import MISCLASSIFIED
from stability.attacks.random_search import square
from stability.attacks.threats import resized
from stability.masking.subject import Case, Check, allowed, before_the_judge, configured
from stability.types import Images, Indices, Labels


def moved(case: Case, least: float = 0.1, typical: float = 0.5) -> Check:
    """Fails where attacks leave images where they are: a robust accuracy is then that of images nobody attacked.

    Of each image that is left standing: how far the last attack went, as a share of what ball and box allow. Rounding may
    eat a budget (2/255 in an attack that computes in bfloat16), and so may an epsilon below the resolution of the images.
    Honest attacks end at the edge of the ball, those in L2 a little inside, where the box cut off their steps.
    """
    alive, count = case.white_box.robust, int(case.white_box.robust.sum())
    if not count or not case.threat.epsilon:
        return Check("moved", None, {}, {}, "epsilon is 0" if count else "no image is left standing")
    x, found = case.x[alive].double(), case.white_box.x_adv[alive].double()
    reach = case.threat.size(torch.maximum(x, 1 - x)).clamp_max(case.threat.epsilon)
    used = case.threat.size(found - x) / reach
    still, limit, median = int((used < least).sum()), allowed(0.02, count), float(used.median())
    return Check(
        "moved",
        still <= limit and median >= typical,
        {"used_median": median, "used_smallest": float(used.min()), "still": still / count},
        {"used": least, "used_median": typical, "still": limit / count},
        f"of {count} images left standing {still} were moved by less than {least:.0%} of what the ball and the box "
        f"allow, the median by {median:.0%}",
    )


def more_steps(case: Case) -> Check:
    """Fails where a longer attack breaks many images that shorter ones did not: they had not converged.

    Each of `case.many_steps` may find 2 % of the images: an honest PGD-20 leaves about one in a hundred to PGD-1000,
    SONet's left 37. Where one finds more, images that as few steps from another start break too do not count: that is the luck
    of a start, and with or without it no more than 5 % may fall.
    """
    count, limit, most = len(case.x), allowed(0.02, len(case.x)), allowed(0.05, len(case.x))
    found = {steps: case.broken_by(index) for index, steps in enumerate(case.many_steps, start=1)}
    lucky = dict.fromkeys(found, 0)
    for index, (steps, number) in enumerate(found.items(), start=1):
        if limit < number <= most:
            lucky[steps] = case.lucky(case.white_box.broken_by == index)
    robust = count - case.broken_by(MISCLASSIFIED) - case.broken_by(0)
    figures = {f"robust_{case.steps}": robust / count}
    for steps, number in found.items():
        robust -= number
        figures |= {f"robust_{steps}": robust / count, f"found_{steps}": number / count}
        figures |= {f"lucky_{steps}": lucky[steps] / count} if lucky[steps] else {}
    luck = {steps: f" ({number} of which another start finds)" if number else "" for steps, number in lucky.items()}
    told = ", ".join(f"{steps} steps break {number}{luck[steps]}" for steps, number in found.items())
    return Check(
        "more_steps",
        max(number - lucky[steps] for steps, number in found.items()) <= limit,
        figures,
        {"found": limit / count},
        f"of {count} images, after PGD with {case.steps} steps: {told} that the shorter ones left standing",
    )


def other_losses(case: Case) -> Check:
    """Fails where the margin loss breaks many images that cross-entropy left: the scale of the logits then hides them.

    The margin grows with the logits' scale as its gradient does, so that no scale can saturate it. It may find 5 %: on
    honest, adversarially trained nets it is a few points stronger than cross-entropy.
    """
    count, found, limit = len(case.x), case.broken_by(len(case.many_steps) + 1), allowed(0.05, len(case.x))
    return Check(
        "other_losses",
        found <= limit,
        {"found": found / count},
        {"found": limit / count},
        f"PGD with the margin loss breaks {found} of {count} images that cross-entropy left standing",
    )


def large_epsilon(case: Case) -> Check:
    """Fails where images survive although the ball holds every image there is: the attack is then led astray."""
    name, count = "large_epsilon", len(case.x)
    with torch.no_grad():
        predicted = torch.cat([evaluated(case.net, part).argmax(1) for part in case.x.split(case.batch_size)])
        constant = len(predicted.unique()) == 1 and bool((case.net(_probes(case)).argmax(1) == predicted[0]).all())
    if constant or not bool((predicted == case.y).any()):
        return Check(name, None, {}, {}, "the network tells none of these images apart: there is nothing to break")
    everything = resized(case.threat, float(case.threat.size(torch.ones_like(case.x[:1], dtype=torch.float64))))
    # From the images themselves: a random start in so large a ball is an attack that needs no gradient.
    attack = partial(case.attack, threat=everything, random_start=False)
    verdict = case.judged([("short", attack()), ("long", attack(steps=100, loss="margin"))], everything, case.clean)
    robust = int(verdict.robust.sum())
    limit = allowed(0.01, count)
    return Check(
        name,
        robust <= limit,
        {"epsilon": everything.epsilon, "robust": robust / count},
        {"robust": limit / count},
        f"{robust} of {count} images survive PGD at epsilon {everything.epsilon:.3g}, where all is allowed",
    )


def _probes(case: Case, count: int = 8) -> Images:
    """Images unlike the sample, of its shape: even greys, and uniform noise. Images of one class need not betray a class."""
    shape = (count, *case.x.shape[1:])
    grey = torch.linspace(0, 1, count).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(case.seed))
    return torch.cat([grey, noise]).to(case.x)


def black_box(case: Case) -> Check:
    """Fails where an attack that sees no gradient breaks images that the white-box attacks left: gradients mislead them.

    It may find 2 %: a search from other starting points now and then finds what gradients from one do not. Of SODEF the
    Square attack broke two points more than the best white-box one.
    """
    if case.x.dim() != 4:
        return Check("black_box", None, {}, {}, "the Square attack needs images (B, channels, height, width)")

    @indexed
    def attack(net: nn.Module, x: Images, y: Labels, indices: Indices) -> Images:
        generator = torch.Generator().manual_seed(case.seed)
        return square(net, x, y, case.threat, case.queries, generator=generator, indices=indices, batch_size=case.batch_size)

    (found,), count = case.broken_further([("square", before_the_judge(attack, case.batch_size))]), len(case.x)
    limit, left = allowed(0.02, count), int(case.white_box.robust.sum())
    return Check(
        "black_box",
        found <= limit,
        {"found": found / count, "left_by_white_box": left / count},
        {"found": limit / count},
        f"the Square attack with {case.queries} queries breaks {found} of {left} images that the white-box attacks "
        f"left standing, of {count}",
    )


def transfer(case: Case) -> Check:
    """Fails where images crafted on another scheme, same weights and substeps, break what the white-box attacks left.

    Each scheme may find 2 % of the images, held to it on its own: it is one more restart too, and over many of them what
    honest restarts find adds up.
    """
    name, own = "transfer", {stage.scheme for stage in stages(case.net).values()}
    sources = [scheme for scheme in case.sources if own - {scheme}]
    if not sources:
        return Check(name, None, {}, {}, "no stage can run another scheme" if not own else "no scheme but its own was named")
    blown_up = []

    def crafted_on(source: Scheme) -> Callable[..., Any]:
        @indexed
        def attack(net: nn.Module, x: Images, y: Labels, indices: Indices) -> Images:
            try:
                with configured(net, scheme=source, gradient="exact"):
                    return case.attack()(net, x, y, indices)
            except (ValueError, ArithmeticError, AssertionError):  # a scheme that cannot run these weights
                blown_up.append(str(source))
                return x

        return attack

    found = dict(zip(map(str, sources), case.broken_further([(str(source), crafted_on(source)) for source in sources])))
    count, limit = len(case.x), allowed(0.02, len(case.x))
    strongest = max(found, key=found.__getitem__)
    without = f"; nothing could be crafted on {', '.join(blown_up)}" if blown_up else ""
    return Check(
        name,
        found[strongest] <= limit and len(blown_up) < len(sources),
        {source: number / count for source, number in found.items()},
        {"found": limit / count},
        f"of {count} images those crafted on {strongest} break {found[strongest]} that the white-box attacks left "
        f"standing, on all of {len(sources)} schemes {sum(found.values())}{without}",
    )
