"""Auto-PGD: projected gradient ascent with momentum that chooses the sizes of its steps, each image its own."""

from functools import partial
from math import ceil

import torch

from stability.attacks.ascent import Attacked, Looking, ascend
from stability.attacks.images import check_count, indexed
from stability.attacks.threats import confine, rows
from stability.types import Flags, Images, Indices, Labels, Net, PerSample, Threat

MOMENTUM, RISING = 0.75, 0.75  # alpha and rho of the paper


@indexed
def apgd(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    steps: int = 100,
    loss: str = "cross_entropy",
    *,
    restarts: int = 1,
    targets: int | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 512,
) -> Images:
    """Auto-PGD, images that have fallen leaving the batch.

    Steps start at 2 * epsilon. At checkpoints an image's step is halved, and it goes back to its best point, where too few of
    the steps since the last checkpoint raised the loss, or where the highest loss and the step have both not changed since.

    Args:
        net, x, y, threat, loss, restarts, random_start, generator, indices, batch_size: As for `pgd`.
        steps: Gradient steps for each run.
        targets: As for `pgd`; with loss="dlr" and 9 targets, the targeted Auto-PGD of AutoAttack.

    Returns:
        Images like x, within the ball and within [0, 1]: of each the first misclassified iterate, else the one of
        highest loss.

    Raises:
        ValueError: As for `pgd`.

    Source: Croce & Hein (2020), Reliable evaluation of adversarial robustness, algorithm 1 and section 3.
    """
    check_count("steps", steps)
    return ascend(
        net,
        x,
        y,
        threat,
        partial(_climb, threat=threat, steps=steps),
        loss,
        restarts=restarts,
        targets=targets,
        random_start=random_start,
        generator=generator,
        indices=indices,
        batch_size=batch_size,
    )


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are reconsidered: in shares p of all steps, p' = p + max(p - p_before - 0.03, 0.06)."""
    before, share, found = 0.0, 0.22, []
    while share <= 1:
        found.append(ceil(round(share * steps, 9)))  # rounded first: 0.22 * 50 is a little more than 11
        before, share = share, share + max(share - before - 0.03, 0.06)
    return found


def _climb(
    look: Looking, point: Images, images: Attacked, safe: Threat, threat: Threat, steps: int
) -> tuple[Images, PerSample, Flags]:
    best, score = point.clone(), torch.full_like(point.flatten(1)[:, 0], -torch.inf)
    fallen, alive = torch.zeros_like(images.y, dtype=torch.bool), torch.arange(len(point), device=point.device)
    size, rises, halved = torch.full_like(score, 2 * threat.epsilon), torch.zeros_like(score), torch.zeros_like(fallen)
    previous, loss, highest = point, torch.full_like(score, torch.inf), torch.full_like(score, -torch.inf)
    mark, top, uphill, since, checks = highest, point, torch.zeros_like(point), 0, checkpoints(steps)
    for step in range(steps + 1):
        now = look(point, images, step < steps)
        rises, loss, higher = rises + (now.loss > loss), now.loss, now.loss > highest
        highest, top = torch.where(higher, now.loss, highest), torch.where(rows(higher, point), point, top)
        better = higher | now.wrong
        best[alive[better]], score[alive[better]], fallen[alive] = now.image[better], now.score[better], now.wrong
        if step == steps:
            break
        gradient = now.gradient
        uphill = torch.where(rows(higher, point), gradient, uphill)
        if step == 0:
            mark = highest
        kept = ~now.wrong
        if not bool(kept.all()):
            images = images[kept]
            alive, point, previous, gradient, top, uphill, size, rises, halved, loss, highest, mark = (
                values[kept]
                for values in (alive, point, previous, gradient, top, uphill, size, rises, halved, loss, highest, mark)
            )
            if not len(alive):
                break
        if step in checks:
            halved = (rises < RISING * (step - since)) | (~halved & (highest == mark))
            back = rows(halved, point)
            size, loss = torch.where(halved, size / 2, size), torch.where(halved, highest, loss)
            point, gradient = torch.where(back, top, point), torch.where(back, uphill, gradient)
            rises, mark, since = torch.zeros_like(rises), highest, step
        ahead = confine(point + rows(size, point) * threat.steepest(gradient), images.x, safe)
        share = MOMENTUM if step else 1.0
        point, previous = point + share * (ahead - point) + (1 - share) * (point - previous), point
        point = confine(point, images.x, safe)
    return best, score, fallen
