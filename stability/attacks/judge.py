"""The judge of attacks: it alone projects, evaluates again and counts."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stability.attacks.images import check_count, check_images, check_logits, evaluating, told
from stability.attacks.threats import check_threat, held
from stability.errors import InputError
from stability.types import Flags, Images, Judge, Labels, Logits, Net, Threat

MISCLASSIFIED, SURVIVED = -2, -1  # in WorstCase.broken_by, beside the indices of attacks


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What a sequence of attacks left standing, judged image by image.

    robust: (B,) bool. broken_by: (B,) index of the attack, -1 survived, -2 misclassified without any.
    untrusted: (B,) bool, counted as broken because the judge did not trust its own logits; also in `broken_by`.
    x_adv: images that broke the network; of survivors the last ones tried. names: of the attacks. question: SHA-256 of images
    and labels and, once there was an attack, of the threat.
    Tensors, a tuple of strings and a string, so that `torch.save(vars(result))` keeps it and `WorstCase(**loaded)` brings it
    back.
    """

    robust: Tensor
    broken_by: Tensor
    untrusted: Tensor
    x_adv: Tensor
    names: tuple[str, ...]
    question: str


def worst_case(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    attacks: Iterable[Callable[..., Any] | tuple[str, Callable[..., Any]]],
    judge: Judge | None = None,
    *,
    batch_size: int = 512,
    state: WorstCase | None = None,
) -> WorstCase:
    """Let attacks at a network, and judge: project, evaluate again, count. Survivors alone go on to the next attack.

    Args:
        net: x -> logits, what the attacks see.
        x, y: Images in [0, 1] and labels, as for `pgd`.
        threat: What every image is held to, whatever the attack returned.
        attacks: Callables (net, x, y) -> x_adv, or pairs (name, callable). One that says so by an attribute
            `takes_indices = True` is called with indices=(B,) too, which images of x it got, so that their noise does not
            depend on who survived: `functools.partial(pgd, threat=threat)` does.
        judge: x -> (logits, trusted (B,) bool or None); by default the network itself, trusted. An image whose logits
            are not trusted counts as broken. One that says `takes_labels = True` is given (x, y): it need not ask whether to
            trust logits that are wrong.
        batch_size: Images judged at once.
        state: A `WorstCase` of the same net, images, labels and threat to go on from: what its attacks broke stays broken,
            and the new attacks get its survivors, as if all had been given at once. One without attacks serves any threat.

    Returns:
        A `WorstCase`, of the attacks of `state` and the new ones.

    Raises:
        ValueError: As for `pgd`; an attack is no callable, or returned no such images; the judge returned something else;
            `state` is of other images, labels or another threat.
    """
    x = check_images(x, y)
    check_threat(threat)
    check_count("batch_size", batch_size)
    judge = _judge(judge or (lambda x: (net(x), None)))
    if not isinstance(attacks, Iterable):
        raise InputError(f"attacks must be a list of attacks, got {attacks!r}")
    pairs = [attack if isinstance(attack, tuple) and len(attack) == 2 else (_name(attack), attack) for attack in attacks]
    for _, attack in pairs:
        if not callable(attack):
            raise InputError(f"an attack must be a callable (net, x, y) -> images, or a pair (name, callable), got {attack!r}")
    x = x.detach().clone()
    before: tuple[str, ...] = ()
    if state is None:
        wrong, untrusted = _judged(judge, net, x, y, batch_size)
        broken_by, best = torch.where(wrong, MISCLASSIFIED, torch.full_like(y, SURVIVED)), x.clone()
    else:
        broken_by, untrusted, best, before = _taken_up(state, x, y, threat)
    for index, (name, attack) in enumerate(pairs, len(before)):
        alive = (broken_by == SURVIVED).nonzero()[:, 0]
        if not len(alive):
            break
        moved = _held(_returned(name, attack(net, x[alive], y[alive], **told(attack, alive.cpu())), x[alive]), x[alive], threat)
        wrong, doubtful = _judged(judge, net, moved, y[alive], batch_size)
        best[alive], untrusted[alive], broken_by[alive[wrong]] = moved, doubtful, index
    names = (*before, *(name for name, _ in pairs))
    return WorstCase(broken_by == SURVIVED, broken_by, untrusted, best, names, _question(x, y, threat if names else None))


def _question(x: Images, y: Labels, threat: Threat | None) -> str:
    """What is asked of a network, in 64 characters; the same wherever the tensors lie. Without attacks it has no threat."""
    ball = "none" if threat is None else f"{type(threat).__name__} {float(threat.epsilon)!r}"
    digest = hashlib.sha256(f"{ball} {x.dtype} {tuple(x.shape)}".encode())
    for tensor in (x, y):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _taken_up(state: WorstCase | None, x: Images, y: Labels, threat: Threat) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Copies of (broken_by, untrusted, x_adv, names) of a state, on the device of x."""
    if not isinstance(state, WorstCase):
        raise InputError(f"state must be a WorstCase, got {type(state).__name__}; WorstCase(**loaded) makes one of its vars()")
    if state.question not in (_question(x, y, threat), _question(x, y, None)):
        raise InputError(
            "the state is of other images, other labels or another threat than those given: its survivors have not met this one"
        )
    broken_by, untrusted, best = (values.to(x.device, copy=True) for values in (state.broken_by, state.untrusted, state.x_adv))
    return broken_by, untrusted, best, state.names


def _returned(name: str, moved: Any, x: Images) -> Images:
    """What an attack made of x, in the type of x and on its device; ValueError where that is no such images."""
    if not isinstance(moved, torch.Tensor) or moved.is_complex() or moved.shape != x.shape:
        found = f"{moved.dtype} {tuple(moved.shape)}" if isinstance(moved, torch.Tensor) else type(moved).__name__
        raise InputError(f"attack {name!r} returned {found}; it was given {x.dtype} {tuple(x.shape)}")
    moved = moved.detach().to(x)
    if not bool(torch.isfinite(moved).all()):
        raise InputError(f"attack {name!r} returned images with NaN or Inf")
    return moved


def _held(point: Images, centre: Images, threat: Threat) -> Images:
    """`point` where it keeps to the ball and the box, bit for bit; else its projection."""
    size = threat.size(point.double() - centre.double())
    kept = (size <= threat.epsilon * (1 + 1e-6)) & ((point >= 0) & (point <= 1)).flatten(1).all(1)
    return torch.where(kept.view(-1, *[1] * (point.dim() - 1)), point, held(point, centre, threat))


def _judged(judge: Callable[..., Any], net: Net, x: Images, y: Labels, batch_size: int) -> tuple[Flags, Flags]:
    wrong, untrusted = [], []
    with evaluating(net), torch.no_grad():
        for x_part, y_part in zip(x.split(batch_size), y.split(batch_size)):
            logits, trusted = _verdict(judge(x_part.clone(), y_part), y_part)  # a network may write into its images
            untrusted.append(~trusted)
            wrong.append((logits.argmax(1) != y_part) | ~trusted)
    return torch.cat(wrong), torch.cat(untrusted)


def _judge(judge: Any) -> Callable[..., Any]:
    """A judge as (x, y) -> (logits, trusted), whether it takes labels or not."""
    return judge if getattr(judge, "takes_labels", False) else lambda x, y: judge(x)


def _verdict(found: Any, y: Labels) -> tuple[Logits, Flags]:
    """(logits, trusted) as a judge returned them; ValueError where it returned something else."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(f"the judge must return (logits, trusted), got {type(found).__name__}")
    logits, trusted = found
    if trusted is None:
        trusted = torch.ones_like(y, dtype=torch.bool)
    if not isinstance(trusted, torch.Tensor) or trusted.dtype != torch.bool or trusted.shape != y.shape:
        found = f"{trusted.dtype} {tuple(trusted.shape)}" if isinstance(trusted, torch.Tensor) else type(trusted).__name__
        raise InputError(f"the judge must say of each of {len(y)} images whether it is trusted, bool ({len(y)},), got {found}")
    check_logits(logits, y, trusted.to(y.device))
    return logits, trusted.to(y.device)


def _name(attack: Any) -> str:
    return getattr(getattr(attack, "func", attack), "__name__", type(attack).__name__)
