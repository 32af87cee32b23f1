"""Checks of the audit that look at the forward pass, one function each: a `Case` in, a `Check` out."""

from typing import Any, cast

import torch
from torch import Tensor

from odenets import evaluate, stages, tightened
from stability.attacks.images import evaluated, split
from stability.attacks.judge import MISCLASSIFIED
from stability.masking.roots import off_path, solving
from stability.masking.subject import JUDGE_TOLERANCE, Case, Check, allowed
from stability.types import Logits, PerSample


def deterministic(case: Case, images: int = 64, limit: float = 1e-3) -> Check:
    """Fails where an image's logits change from call to call, or with the images beside it in a batch.

    Differences count relative to the spread of an image's logits. Rounding changes with the shape of a batch by about
    1e-6 of it; an attack whose steps meet noise above `limit` averages over it at best. Equations are solved to the
    judge's tolerance, and images on which that fails are left to `solver`. Logits of fewer bits than float32 round by more:
    there the limit is eight units of theirs.
    """
    x = case.x[:images]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))
    order = torch.cat([order[order != 0], order[order == 0]]).to(x.device)  # what leans on the first image meets another one
    with torch.no_grad(), tightened(case.net, JUDGE_TOLERANCE):
        first, outcome = evaluate(case.net, x.clone())
        solved, limit = outcome.converged, max(limit, 8 * torch.finfo(first.dtype).eps)
        again, shuffled = evaluated(case.net, x), torch.empty_like(first)
        # Parts of another size than the whole, each image among other neighbours.
        for rows in order.split(min(7, (len(x) + 1) // 2)):
            shuffled[rows] = case.net(x[rows])
    kept = torch.ones_like(first[:, 0], dtype=torch.bool) if solved is None else solved
    changes = {"repeated": _change(again, first)[kept], "other_batch": _change(shuffled, first)[kept]}
    count = int(kept.sum())
    if not count:
        return Check("deterministic", None, {"images": 0}, {}, "no image has all its equations solved")
    moved = {name: int((values > limit).sum()) for name, values in changes.items()}
    most = allowed(0.02, count)
    return Check(
        "deterministic",
        max(moved.values()) <= most,
        {f"{name}_share": number / count for name, number in moved.items()}
        | {f"{name}_largest": float(changes[name].max()) for name in moved},
        {"share": most / count, "change": limit},
        f"the same image gives other logits when it is evaluated again on {moved['repeated']} of {count} images, "
        f"among other images on {moved['other_batch']}",
    )


def solver(case: Case) -> Check:
    """Fails where images leave equations unsolved: adversarial ones for the judge, any at the net's own settings.

    Logits of an unsolved equation mean nothing, and an attack can hide behind them. An honest net leaves a per cent or
    so unsolved at its own tolerance and cap; 5 % is beyond that.
    """
    if not any(stage.scheme.implicit for stage in case.iterated):
        return Check("solver", None, {}, {}, "no stage solves an equation to a tolerance")
    count, limit = len(case.x), allowed(0.02, len(case.x))
    own: dict[str, Any] = {name: outcome for name, (_, outcome) in case.own.items()} | {"judged": case.tight["adversarial"][1]}
    unsolved = {name: int((~outcome.converged).sum()) for name, outcome in own.items()}
    untrusted = int((case.white_box.untrusted & ~own["judged"].converged).sum())  # the others: see `connected_root`
    residuals = {
        f"{name}_residual_{kind}": float(pick(outcome.residual))
        for name, outcome in own.items()
        for kind, pick in (("median", torch.median), ("largest", torch.max))
    }
    worst, most = max(unsolved["clean"], unsolved["adversarial"]), allowed(0.05, count)
    return Check(
        "solver",
        untrusted <= limit and worst <= most,
        {"share_unconverged": untrusted / count}
        | {f"{name}_share_unconverged": unsolved[name] / count for name in ("clean", "adversarial")}
        | residuals,
        {
            "share_unconverged": limit / count,
            "clean_share_unconverged": most / count,
            "adversarial_share_unconverged": most / count,
        },
        f"{untrusted} of {count} adversarial images have an equation unsolved at tolerance "
        f"{JUDGE_TOLERANCE:g}; they count as broken. At the net's own tolerance {unsolved['clean']} clean and "
        f"{unsolved['adversarial']} adversarial ones do",
    )


def connected_root(case: Case) -> Check:
    """Fails where logits hang on the path of the solver: the function that is attacked and judged is then not defined.

    An implicit step may have several roots. The scheme's value is the one connected to the state as the step size grows from
    0; images whose cold solve converged to another one, or whose path turns back, may change class with the tolerance, the
    precision or the solver, and what an attack finds on them is chance. Those without a solution are left to `solver`.
    """
    if not solving(case.net):
        return Check("connected_root", None, {}, {}, "no stage solves a nonlinear equation, which alone has several roots")
    with tightened(case.net, JUDGE_TOLERANCE):
        found = {
            key: torch.cat(
                [off_path(case.net, *part) for part in split(case.batch_size, x, logits, cast(Tensor, outcome.converged))]
            )
            for (key, x), (logits, outcome) in zip(case.points.items(), case.tight.values())
        }
    count, most = len(case.x), allowed(0.02, len(case.x))
    moved = {key: int(hanging.sum()) for key, hanging in found.items()}
    shares = {f"{key}_share": number / count for key, number in moved.items()}
    return Check(
        "connected_root",
        max(moved.values()) <= most,
        shares,
        dict.fromkeys(shares, most / count),
        f"the solves of {moved['clean']} of {count} clean and {moved['adversarial']} adversarial images do not end at "
        f"the root connected to the state, so that their logits hang on the solver; they count as broken",
    )


def tolerance(case: Case, limit: float = 0.02) -> Check:
    """Fails where a tighter tolerance moves the answer: logits, predictions, or the robust accuracy under PGD.

    Logits may move by 2 % of their spread (the median over images): that carries about 2 % of the images across a
    decision boundary where margins are spread evenly, the 2 points that robust accuracy may move. Up to 5 points, an image
    that another start breaks at the other tolerance too does not count: that is the luck of a start. Adaptive schemes are not
    attacked at the tight tolerance: they take their samples one by one, and it would be hours on a larger net.
    """
    name, parameters = "tolerance", {key for stage in stages(case.net).values() for key in stage.scheme.parameters}
    if not parameters & {"tol", "rtol"}:
        return Check(name, None, {}, {}, "nothing in this network is computed to a tolerance")
    own, tight = ({key: logits for key, (logits, _) in found.items()} for found in (case.own, case.tight))
    count, most = len(case.x), allowed(0.02, len(case.x))
    moves = {key: float(_change(own[key], tight[key]).median()) for key in own}
    moved = int((own["clean"].argmax(1) != tight["clean"].argmax(1)).sum())
    figures = {"predictions_moved": moved / count} | {f"{key}_logits_moved": value for key, value in moves.items()}
    thresholds = {"predictions_moved": most / count} | {f"{key}_logits_moved": limit for key in moves}
    passed, robustness = moved <= most and max(moves.values()) <= limit, ""
    if "tol" in parameters:
        left = (own["clean"].argmax(1) == case.y) & case.left_by_own()
        judged = ~torch.isin(case.white_box.broken_by, case.white_box.broken_by.new_tensor([MISCLASSIFIED, 0]))
        robust, tight_robust, luck = int(left.sum()), int(judged.sum()), 0
        difference = robust - tight_robust
        figures |= {"robust_own": robust / count, "robust_tight": tight_robust / count}
        if most < abs(difference) <= allowed(0.05, count):
            hidden, shown = left & ~judged, judged & ~left
            luck = int((~case.another_start(hidden).left_by_own()).sum()) if difference > 0 else case.lucky(shown)
            figures |= {"lucky": luck / count} if luck else {}
        figures["robust_moved"] = max(0, abs(difference) - luck) / count
        thresholds["robust_moved"] = most / count
        passed &= abs(difference) - luck <= most
        robustness = f", and PGD leaves {tight_robust} images standing instead of {robust}"
        robustness += f" (another start breaks {luck} of them too)" if luck else ""
    return Check(
        name,
        passed,
        figures,
        thresholds,
        f"at tolerance {JUDGE_TOLERANCE:g} instead of the network's own, {moved} of {count} predictions change, "
        f"logits of adversarial images move by {moves['adversarial']:.2g} of their spread{robustness}",
    )


def _change(logits: Logits, reference: Logits) -> PerSample:
    """(B,) largest change of an image's logits, relative to their spread."""
    spread = (reference.amax(1) - reference.amin(1)).clamp_min(torch.finfo(reference.dtype).tiny)
    return (logits - reference).abs().amax(1) / spread
