"""Training one network: AdamW, one cycle, the same batches for every scheme; standard or adversarial (Madry) loss."""
import math

import torch
from torch.nn import functional as F

import odenets

METHODS = ("standard", "pgd")


def train(net, data, settings, seed, progress=lambda done, total: None):
    """Train `net` in place and leave it in eval mode.

    No choice is made on test images; the last epoch is the result, and held-out accuracy is recorded beside it.

    Args:
        net: Network of ODE stages, on its device.
        data: `Data` on that device.
        settings: Dict with epochs, batch_size, learning_rate, training, train_epsilon, train_steps.
        seed: Order of the batches and noise of the attack; equal for all schemes.
        progress: Called with (batches done, batches in all).

    Returns:
        (history, unsolved): a dict per epoch, and the shares of samples with an equation unsolved, forward and backward.

    Raises:
        ValueError: The loss became NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(data.train) // settings["batch_size"])
    total = batches * settings["epochs"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings["learning_rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["learning_rate"], total_steps=total + 1)
    history, failed, solved = [], [0, 0], 0
    for epoch in range(settings["epochs"]):
        net.train()
        order = torch.randperm(len(data.train), generator=generator).to(data.train.labels.device)
        losses = []
        for batch, index in enumerate(order[: batches * settings["batch_size"]].chunk(batches)):
            x, y = data.train.images[index], data.train.labels[index]
            if settings["training"] == "pgd":
                x = _attack(net, x, y, settings["train_epsilon"], settings["train_steps"], generator)
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            ways = [odenets.converged(net), odenets.converged(net, backward=True)]
            if ways[0] is not None:
                failed = [count + int((~way).sum()) for count, way in zip(failed, ways)]
                solved += len(x)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(f"training diverged: the loss is {losses[-1]} in epoch {epoch + 1}; lower --learning-rate")
            progress(epoch * batches + batch + 1, total)
        net.eval()
        history.append({"epoch": epoch + 1, "loss": sum(losses) / batches, "held_out": accuracy(net, data.held_out)})
    shares = [count / solved if solved else 0.0 for count in failed]
    return history, dict(zip(("training_unconverged_share", "training_backward_unconverged_share"), shares))


@torch.no_grad()
def accuracy(net, split, batch_size=500):
    """Share of a split that `net` classifies correctly, at the tolerance of its own scheme."""
    pairs = zip(split.images.split(batch_size), split.labels.split(batch_size))
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in pairs) / len(split)


def _attack(net, x, y, epsilon, steps, generator):
    """Training images: the last iterate of L-infinity PGD from a random start, exact gradient (Madry et al. 2018)."""
    noise = torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
    delta, step_size = epsilon * noise, 2.5 * epsilon / steps
    for _ in range(steps):
        adversarial = (x + delta).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(adversarial), y), adversarial)
        delta = (adversarial.detach() - x + step_size * gradient.sign()).clamp(-epsilon, epsilon)
    return (x + delta).clamp(0, 1)
