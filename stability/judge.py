"""The judge of attacks: it alone projects, evaluates again and counts."""
from dataclasses import dataclass

import torch

from stability.inputs import accepts_indices, check_images, check_logits, evaluating
from stability.threats import check_threat, confine, shrunk

MISCLASSIFIED, SURVIVED = -2, -1  # in WorstCase.broken_by, beside the indices of attacks


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What a sequence of attacks left standing, judged image by image.

    robust: (B,) bool. broken_by: (B,) index of the attack, -1 survived, -2 misclassified without any.
    untrusted: (B,) bool, counted as broken because the judge could not trust its own logits; also in `broken_by`.
    x_adv: images that broke the network; of survivors the last ones tried. names: of the attacks.
    Tensors and a tuple of strings, so that `torch.save(vars(result))` keeps it and `WorstCase(**loaded)` brings it back.
    """

    robust: torch.Tensor
    broken_by: torch.Tensor
    untrusted: torch.Tensor
    x_adv: torch.Tensor
    names: tuple


def worst_case(net, x, y, threat, attacks, judge=None, batch_size=512, state=None):
    """Let attacks at a network, and judge: project, evaluate again, count. Survivors alone go on to the next attack.

    Args:
        net: x -> logits, what the attacks see.
        x, y: Images in [0, 1] and labels, as for `pgd`.
        threat: What every image is held to, whatever the attack returned.
        attacks: Callables (net, x, y) -> x_adv, or pairs (name, callable). One that takes `indices` is told which
            images of x it got, so that their noise does not depend on who survived: `functools.partial(pgd,
                threat=threat)` does.
        judge: x -> (logits, trusted (B,) bool or None); by default the network itself, trusted. An image whose logits
            are not trusted counts as broken.
        batch_size: Images judged at once.
        state: A `WorstCase` of the same net, images and threat to go on from: what its attacks broke stays broken, and
            the new attacks get its survivors, as if all had been given at once.

    Returns:
        A `WorstCase`, of the attacks of `state` and the new ones.

    Raises:
        ValueError: As for `pgd`; an attack is no callable, or returned another shape or NaN; `state` is of other images or
            another threat.
    """
    check_images(x, y)
    check_threat(threat)
    judge = judge or (lambda x: (net(x), None))
    pairs = [attack if isinstance(attack, tuple) else (_name(attack), attack) for attack in attacks]
    for _, attack in pairs:
        if not callable(attack):
            raise ValueError(f"an attack must be a callable (net, x, y) -> images, or a pair (name, callable), got {attack!r}")
    x = x.detach().clone()
    if state is None:
        wrong, untrusted = _judged(judge, net, x, y, batch_size)
        broken_by, best, before = torch.where(wrong, MISCLASSIFIED, torch.full_like(y, SURVIVED)), x.clone(), ()
    else:
        broken_by, untrusted, best, before = _taken_up(state, x, threat)
    for index, (name, attack) in enumerate(pairs, len(before)):
        alive = (broken_by == SURVIVED).nonzero()[:, 0]
        if not len(alive):
            break
        given = {"indices": alive.cpu()} if accepts_indices(attack) else {}
        moved = attack(net, x[alive], y[alive], **given).detach()
        if moved.shape != x[alive].shape or not bool(torch.isfinite(moved).all()):
            raise ValueError(f"attack {name!r} returned images of shape {tuple(moved.shape)} or with NaN or Inf; "
                             f"it was given {tuple(x[alive].shape)}")
        moved = _held(moved.to(x), x[alive], threat)
        wrong, doubtful = _judged(judge, net, moved, y[alive], batch_size)
        best[alive], untrusted[alive], broken_by[alive[wrong]] = moved, doubtful, index
    return WorstCase(broken_by == SURVIVED, broken_by, untrusted, best, (*before, *(name for name, _ in pairs)))


def _taken_up(state, x, threat):
    """Copies of (broken_by, untrusted, x_adv, names) of a state, on the device of x."""
    same = state.x_adv.shape == x.shape and state.x_adv.dtype == x.dtype and state.broken_by.shape == x.shape[:1]
    best = state.x_adv.to(x.device, copy=True)
    if not same or not torch.equal(_held(best, x, threat), best):
        raise ValueError(f"the state is of other images or another threat: its images {tuple(state.x_adv.shape)} are not "
                         f"within {threat} of those given, {tuple(x.shape)}")
    return state.broken_by.to(x.device, copy=True), state.untrusted.to(x.device, copy=True), best, state.names


def _held(point, centre, threat):
    """`point` where it keeps to the ball and the box, bit for bit; else its projection."""
    size = threat.size(point.double() - centre.double())
    kept = (size <= threat.epsilon * (1 + 1e-6)) & ((point >= 0) & (point <= 1)).flatten(1).all(1)
    return torch.where(kept.view(-1, *[1] * (point.dim() - 1)), point, confine(point, centre, shrunk(threat, centre)))


def _judged(judge, net, x, y, batch_size):
    wrong, untrusted = [], []
    with evaluating(net), torch.no_grad():
        for x_part, y_part in zip(x.split(batch_size), y.split(batch_size)):
            logits, trusted = judge(x_part)
            check_logits(logits, y_part)
            doubtful = torch.zeros_like(y_part, dtype=torch.bool) if trusted is None else ~trusted.to(y_part.device)
            untrusted.append(doubtful)
            wrong.append((logits.argmax(1) != y_part) | doubtful)
    return torch.cat(wrong), torch.cat(untrusted)


def _name(attack):
    return getattr(getattr(attack, "func", attack), "__name__", type(attack).__name__)
