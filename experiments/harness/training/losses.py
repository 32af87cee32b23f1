"""What is minimised in training: one function for each method; the attacks in them follow the exact gradient of the scheme.

Each takes the same arguments and returns the loss of a batch, a scalar, differentiable in the parameters:
    net: x -> logits (B, classes). In training mode: our nets have GroupNorm, for which the mode makes no difference.
    x, y: Images (B, C, H, W) in [0, 1] and labels (B,).
    settings: `TrainingSettings`: train_epsilon (radius of the L-infinity ball, pixel units), steps, step_size, ...
    generator: Of the noise; on its own device.
    memory: Dict of tensors that a method keeps from batch to batch, empty at first.

Below, CE is the mean cross-entropy, B(x) the ball around x within [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import odenets
from experiments.harness.training.gradient import exact_backward

if TYPE_CHECKING:  # whose choices are the names of what stands here
    from experiments.harness.training.settings import TrainingSettings as Settings

Memory = dict[str, Tensor]
# Steps of the training attack where the user names none; the other methods make one step. Its size in units of epsilon, or 1.
STEPS = {"pgd": 7, "summed": 3, "trades": 10}
STEP_SIZE = {
    "pgd": lambda steps: 2.5 / steps,
    "summed": lambda steps: 1 / 4,
    "trades": lambda steps: 1 / 4,
    "fast": lambda steps: 1.25,
}


def rounds(settings: "Settings") -> int:
    """How often each batch is used in succession: more than once in Free training only."""
    return settings.free_replays if settings.training == "free" else 1


def standard(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x), y)."""
    return F.cross_entropy(net(x), y)


def pgd(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x'), y), x' the last iterate of projected gradient ascent on the loss in B(x) from a random start.

    Source: Madry et al. (2018), ICLR.
    """
    return F.cross_entropy(net(_pgd_images(net, x, y, settings, generator)), y)


def summed(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x), y) + CE(net(x'), y), x' as in PGD training; 3 steps of epsilon / 4 by default.

    Source: Li, He, Lin (2020), ICML, the authors' code.
    """
    attacked = _pgd_images(net, x, y, settings, generator)
    # One pass over both: what the solves report is of the last pass, and nothing shall be missing from it.
    return 2 * F.cross_entropy(net(torch.cat([x, attacked])), y.repeat(2))


def trades(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x), y) + beta KL(p(x) || p(x')), p the softmax of the logits, x' in B(x) by ascent on the KL divergence.

    The ascent starts at x plus normal noise of 0.001, since at x itself the gradient is zero; p(x) is a constant in it, and is
    not one in the loss. Source: Zhang et al. (2019), ICML, algorithm 1.
    """
    with torch.no_grad():
        target = net(x).log_softmax(1)

    def divergence(logits: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), target, reduction="sum", log_target=True)

    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
    attacked = _ascend(net, x, 1e-3 * noise, divergence, settings)
    clean, moved = net(torch.cat([x, attacked])).chunk(2)
    apart = F.kl_div(moved.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
    return F.cross_entropy(clean, y) + settings.trades_beta * apart


def free(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x + d), y); the backward pass that trains the net also moves d <- clip(d + epsilon sign(dCE/dd)).

    The caller gives each batch `free_replays` times in succession. d carries over from one batch to the next.
    Source: Shafahi et al. (2019), NeurIPS, algorithm 1.
    """
    delta = memory.get("delta", torch.zeros_like(x)).detach().requires_grad_()

    def climb(gradient: Tensor) -> None:
        memory["delta"] = _clipped(delta.detach() + settings.step_size * gradient.sign(), settings)

    delta.register_hook(climb)
    return F.cross_entropy(net((x + delta).clamp(0, 1)), y)


def fast(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """CE(net(x'), y), x' one step of 1.25 epsilon along the gradient's sign from a random point of B(x), back into B(x).

    Source: Wong, Rice, Kolter (2020), ICLR, algorithm 3.
    """
    return F.cross_entropy(net(_pgd_images(net, x, y, settings, generator)), y)


def margin(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator, memory: Memory) -> Tensor:
    """T CE((net(x) - sqrt 2 offset e_y)/T, y), e_y the unit vector of the class.

    Of a non-expansive net with orthogonal unit rows at its end, images that are certified up to the offset cost little.
    Source: Tsuzuku, Sato, Sugiyama (2018), NeurIPS, for the margin; Prach & Lampert (2022), ECCV, for offset and temperature.
    """
    cooled = lowered(net(x), y, settings) / settings.margin_temperature
    return settings.margin_temperature * F.cross_entropy(cooled, y)


def lowered(logits: Tensor, y: Tensor, settings: "Settings") -> Tensor:
    """Logits, that of the class lowered by sqrt 2 times the offset: what is still right then has it for its radius."""
    return logits - math.sqrt(2) * settings.margin_offset * F.one_hot(y, logits.shape[1])


METHODS = {"standard": standard, "margin": margin, "pgd": pgd, "summed": summed, "trades": trades, "free": free, "fast": fast}


def collapsed(history: Sequence[Any], classes: int) -> bool:
    """Whether the net has overfitted to single-step attacks: PGD breaks it again, while FGSM does not.

    The last epoch is compared with the one that was most accurate under PGD, and better than a guess: that accuracy has fallen
    by half and by ten points at least, and the accuracy under FGSM is still nine tenths of what it was then.

    Args:
        history: The `Epoch`s so far, with held_out_pgd and held_out_fgsm.
        classes: Their number. No attack changes the answer of a net that always gives the same.

    Source: Wong, Rice, Kolter (2020), ICLR, who name and detect it on training images; the margins are ours.
    """
    best, now = max(history, key=lambda epoch: epoch.held_out_pgd), history[-1]
    lost = best.held_out_pgd - now.held_out_pgd
    guess = 1.5 / classes  # the classes need not be of equal size
    fallen = best.held_out_pgd > guess and lost >= max(0.1, best.held_out_pgd / 2)
    return fallen and now.held_out_fgsm >= 0.9 * best.held_out_fgsm


def _pgd_images(net: nn.Module, x: Tensor, y: Tensor, settings: "Settings", generator: torch.Generator) -> Tensor:
    noise = 2 * torch.rand(x.shape, generator=generator, device=generator.device).to(x.device) - 1
    # The sum, not the mean: an image's gradient shall not depend on how many others there are.
    return _ascend(net, x, settings.train_epsilon * noise, lambda logits: F.cross_entropy(logits, y, reduction="sum"), settings)


def _ascend(net: nn.Module, x: Tensor, delta: Tensor, objective: Callable[[Tensor], Tensor], settings: "Settings") -> Tensor:
    """Images in B(x) after `train_steps` steps along the gradient's sign, from x + delta; solves start at the step before."""
    warm, indices = odenets.WarmStart(net), torch.arange(len(x))
    for _ in range(settings.steps):
        point = (x + delta).clamp(0, 1).requires_grad_()
        with exact_backward(net):
            (gradient,) = torch.autograd.grad(objective(warm(point, indices)), point)
        delta = _clipped(point.detach() - x + settings.step_size * gradient.sign(), settings)
    return (x + delta).clamp(0, 1)


def _clipped(delta: Tensor, settings: "Settings") -> Tensor:
    return delta.clamp(-settings.train_epsilon, settings.train_epsilon)
