"""Checks of the audit that look at the gradient itself, one function each: a `Case` in, a `Check` out."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from odenets import WarmStart, evaluate, stages, tightened
from stability.attacks.images import evaluated
from stability.attacks.losses import input_gradient, objective_named
from stability.masking.subject import JUDGE_TOLERANCE, PLAIN, Case, Check, allowed, configured
from stability.types import Flags, Images, Labels, PerSample

FIRST_LOOK = 32  # images
Figures = dict[str, Tensor]  # (B,) each


def zero_gradients(case: Case) -> Check:
    """Fails where the input gradient vanishes: attacks then stand still."""
    shares = {}
    for name, loss in (("cross_entropy", PLAIN), ("margin", "margin")):
        gradient = _gradient(case.net, case.x, case.y, loss, case.batch_size)
        # Far below any honest gradient, and still far above the smallest float32: sign and direction are intact above
        # it.
        shares[name] = float((gradient.flatten(1).abs().amax(1) < 1e-20).double().mean())
    count = len(case.x)
    limit = allowed(0.02, count) / count
    worst = max(shares.values())
    return Check(
        "zero_gradients",
        worst <= limit,
        shares,
        {"share": limit},
        f"{worst:.1%} of the images have no input gradient to follow",
    )


def _in_two_looks(count: int, look: Callable[[slice], tuple[Figures, Flags]]) -> tuple[Figures, Flags]:
    """look(rows) -> (figures of these images, which offend), of `count` images; of the first few where none of them offends.

    Of a fault on a fifth of the images, which all of 64 would miss in 2 of 100 audits, the first 32 show none in 8 of 10,000.
    """
    found, offending = look(slice(0, min(count, FIRST_LOOK)))
    if count <= FIRST_LOOK or not bool(offending.any()):
        return found, offending
    more, too = look(slice(FIRST_LOOK, count))
    return {name: torch.cat([values, more[name]]) for name, values in found.items()}, torch.cat([offending, too])


def finite_differences(case: Case, directions: int = 7, images: int = 64) -> Check:
    """Fails where the gradient that attacks use is not the derivative of the loss, by central differences.

    Along random signs d, <g, d> errs by about ||g - gradient||, so that a few directions measure its relative error.
    The median over them is taken because the forward pass of ie_skip holds the derivative of a ReLU and jumps at its
    kinks. In float64 on a copy where the network allows it, for steps small against the distance to the next kink; with
    the margin loss, which never saturates. Beside the images, a hundredth of the way to noise: equal pixels tie in a
    max-pool, so that a black corner is itself a kink.
    """
    name, objective = "finite_differences", objective_named("margin")
    net, x = _in_double(case.net, case.x[:images])
    y, double = case.y[:images], x.dtype == torch.float64
    if not double and torch.finfo(x.dtype).bits < 32:
        return Check(name, None, {}, {}, f"no float64 copy to be had, and differences drown in the rounding of {x.dtype}")
    if case.iterated and not double:
        return Check(name, None, {}, {}, "no float64 copy to be had; in float32 a step meets too many kinks")
    # As small as rounding allows: ie_skip jumps at every kink. What is solved to a tolerance rounds more coarsely.
    exact = all(stage.scheme.evaluations is not None for stage in stages(net).values())
    step, limit = (1e-8 if exact else 1e-6, 0.01) if double else (2e-3, 0.1)
    generator = torch.Generator().manual_seed(case.seed)
    x = x.lerp(torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x), 0.01)
    x = x.clamp(step, 1 - step)  # steps stay within the box, beyond which a network may clamp
    signs = (2 * torch.randint(2, (directions, *x.shape), generator=generator) - 1).to(x)

    def look(rows: slice) -> tuple[Figures, Flags]:
        part, right, nearby = x[rows], y[rows], WarmStart(net)
        everyone = torch.arange(len(part))

        @torch.no_grad()
        def value(x: Images) -> PerSample:
            return objective(nearby(x.clone(), everyone), right).double()

        with tightened(net, 1e-10 if double else JUDGE_TOLERANCE):
            with torch.no_grad():
                logits, outcome = evaluate(net, part.clone())
            centre, solved = objective(logits, right).double(), outcome.converged
            again = value(part)  # cold too: the first pass is
            gradient = _gradient(net, part, right, "margin", images).double()
            slopes = torch.stack([value(part + step * d[rows]) - value(part - step * d[rows]) for d in signs]) / (2 * step)
        rounding = 100 * torch.finfo(x.dtype).eps * (1 + centre.abs())
        errors = (slopes - torch.stack([(gradient * d[rows]).flatten(1).sum(1) for d in signs])).abs()
        # Relative to the larger of the two derivatives, so that a gradient of zero can fail; rounding is given away.
        scale = torch.maximum(gradient.flatten(1).norm(dim=1), slopes.abs().median(0)[0]).clamp_min(1e-300)
        error = ((errors - rounding / step).clamp_min(0) / scale).median(0)[0]
        spread = (centre - again).abs()
        solved = torch.ones_like(error, dtype=torch.bool) if solved is None else solved
        found = {"error": error, "solved": solved, "spread": spread, "changed": spread > rounding}
        return found, found["changed"] | (solved & (error > limit))

    found, _ = _in_two_looks(len(x), look)
    if bool(found["changed"].any()):
        return Check(
            name,
            False,
            {"spread": float(found["spread"].max())},
            {"spread": 0.0},
            "the network gives different logits for the same image, so that no gradient is its derivative",
        )
    error = found["error"][found["solved"]]
    if not len(error):
        return Check(name, None, {"images": 0}, {}, "no image has all its equations solved")
    count, median, wrong = len(error), float(error.median()), int((error > limit).sum())
    return Check(
        name,
        wrong <= allowed(0.05, count),
        {"median_error": median, "share_wrong": wrong / count, "images": count},
        {"error": limit, "share_wrong": allowed(0.05, count) / count},
        f"the input gradient is off finite differences by {median:.2g} (median, relative), by more than "
        f"{limit:g} on {wrong} of {count} images",
    )


def exact_gradient(
    case: Case, images: int = 64, limit: float = 0.999, loose_limit: float = 0.9, loose_median: float = 0.98
) -> Check:
    """Fails where the gradient in use is not the scheme's exact one, or not that of its equations solved accurately.

    Counted image by image: a gradient that is wrong on a third of them has a perfect median. The tolerance has a looser
    limit, and one for the median too: near a kink an honest solve to 1e-2 may land on the other side of it.
    """
    if not case.iterated:
        return Check("exact_gradient", None, {}, {}, "no stage iterates, so that autograd's gradient is the exact one")
    limits = {"in_use": limit, "tolerance": loose_limit}

    def look(rows: slice) -> tuple[Figures, Flags]:
        gradient = partial(_gradient, case.net, case.x[rows], case.y[rows], "margin", case.batch_size)
        found = {"in_use": gradient()}
        for name in ("exact", "detached", "unrolled"):
            with configured(case.net, gradient=name):
                found[name] = gradient()
        exact = found.pop("exact")
        figures = {f"{name}_cosine": _cosines(other, exact) for name, other in found.items()}
        figures |= {
            f"{name}_sign_agreement": (other.sign() == exact.sign()).flatten(1).double().mean(1)
            for name, other in found.items()
        }
        with configured(case.net, gradient="exact"), tightened(case.net, JUDGE_TOLERANCE):
            figures["tolerance_cosine"] = _cosines(exact, gradient())
        # NaN is wrong too
        return figures, torch.stack([~(figures[f"{key}_cosine"] >= least) for key, least in limits.items()]).any(0)

    found, _ = _in_two_looks(min(images, len(case.x)), look)
    figures = {name: float(values.nanmedian() if "cosine" in name else values.mean()) for name, values in found.items()}
    count, wrong = len(found["in_use_cosine"]), {}
    for key, least in limits.items():
        wrong[key] = int((~(found[f"{key}_cosine"] >= least)).sum())
    most, shares = allowed(0.05, count), {f"{name}_share_wrong": number / count for name, number in wrong.items()}
    passed = max(wrong.values()) <= most and figures["tolerance_cosine"] >= loose_median
    thresholds = {"tolerance_cosine": loose_median} | dict.fromkeys(shares, most / count)
    return Check(
        "exact_gradient",
        passed,
        figures | shares,
        thresholds,
        f"cosine with the exact gradient below {limit:g} on {wrong['in_use']} of {count} images, medians: in use "
        f"{figures['in_use_cosine']:.4f}, detached {figures['detached_cosine']:.4f}, unrolled "
        f"{figures['unrolled_cosine']:.4f}; the exact one at the tolerance in use against {JUDGE_TOLERANCE:g}: "
        f"{figures['tolerance_cosine']:.4f}, below {loose_limit:g} on {wrong['tolerance']}",
    )


def _cosines(a: Tensor, b: Tensor) -> PerSample:
    """(B,) cosines of the angles between two gradients, 1 where they are equal: zeros are another check's matter."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return nn.functional.cosine_similarity(a, b, eps=1e-300).masked_fill((a == b).all(1), 1.0)


def _gradient(net: nn.Module, x: Images, y: Labels, loss: str, batch_size: int) -> Images:
    parts = []
    for x_part, y_part in zip(x.split(batch_size), y.split(batch_size)):
        point = x_part.detach().clone().requires_grad_()
        logits = evaluated(net, point)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))  # as attacks do
        parts.append(input_gradient(objective_named(loss)(precise, y_part), point, logits, precise))
    return torch.cat(cast(list[Tensor], parts))


def _in_double(net: nn.Module, x: Images) -> tuple[nn.Module, Images]:
    """A float64 copy of the network and the images; where it cannot be had, both as they are."""
    try:
        copy = deepcopy(net).double()
        with torch.no_grad():
            usable = evaluated(copy, x[:1].double()).dtype == torch.float64
    except (RuntimeError, TypeError, NotImplementedError):
        usable = False
    return (copy, x.double()) if usable else (net, x)
