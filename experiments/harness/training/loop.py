"""Training one network: the same batches for every scheme, the best epoch chosen on held-out training images.

No test image is seen here. At any moment everything that the rest of the training depends on lies in one dict, which can be
saved and, after a kill, taken up again: on a CPU the outcome is then the same to the last bit.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import odenets
import stability
from experiments.harness.training import losses as adversarial_training
from experiments.harness.training.augmentation import augment
from experiments.harness.training.data import Data, Split
from experiments.harness.training.epoch import Epoch, Say
from experiments.harness.training.gradient import exact_backward, gradient_cosine, is_approximate
from experiments.harness.training.optim import make_optimizer, make_schedule
from experiments.harness.training.precision import low_precision, products
from experiments.harness.training.settings import TrainingSettings
from experiments.harness.words import count, duration
from odenets.errors import Divergence
from stability.masking.subject import configured
from stability.types import Progress

Book = dict[str, Any]  # what the rest of a training depends on beside weights and generators
Generators = dict[str, torch.Generator]
CALIBRATED = 256  # images that a new BatchNorm takes its statistics from
EXPLAINED = 8  # images on which a divergence is explained
LONG = 300.0  # seconds: a training that takes longer says so after its first epoch
SELECTION_STEPS = 10  # of the PGD that judges an epoch


class Trained(NamedTuple):
    """What came of a training, beside the weights."""

    history: tuple  # an `Epoch` each
    unsolved: dict  # shares of samples with an equation unsolved, forward and backward
    epoch: int  # whose weights these are
    seconds: float  # before a kill and after


def train(
    net: nn.Module,
    data: Data,
    settings: TrainingSettings,
    seed: int,
    store: Any = None,
    progress: Progress = lambda done, total: None,
    say: Say = lambda sentence: None,
) -> Trained:
    """Train `net` in place and leave it in eval mode, with the weights of its best (or last) epoch.

    The best epoch classifies most held-out training images rightly, after a short PGD where training is adversarial; of equals
    it is the later one. Everything is in float32 but, with precision "bfloat16" or "tf32", the passes of training itself; the
    equations of implicit steps are in float32 there too.

    Args:
        net: Network of ODE stages, on its device.
        data: `Data` on that device.
        settings: `TrainingSettings`. Epochs count passes of gradients: Free training with m replays makes epochs / m passes
            over the images, rounded up, each an epoch of the history.
        seed: Order of the batches, augmentation, noise of the attack; equal for all schemes.
        store: Has latest() -> state or None and save(state); called after each epoch and every `checkpoint_seconds`.
        progress: Called with (batches done, batches in all).
        say: Called with a sentence that the user should read, and with each `Epoch`.

    Returns:
        A `Trained`.

    Raises:
        ValueError: The loss became NaN or infinite.
    """
    with configured(net, gradient=settings.train_gradient):
        return _train(net, data, settings.resolved(), seed, store, progress, say)


def _train(
    net: nn.Module,
    data: Data,
    settings: TrainingSettings,
    seed: int,
    store: Any,
    progress: Progress,
    say: Say,
) -> Trained:
    rounds = adversarial_training.rounds(settings)
    passes, batches = -(-settings.epochs // rounds), max(1, len(data.train) // settings.batch_size)
    optimizer = make_optimizer(net.parameters(), settings)
    schedule = make_schedule(optimizer, settings, passes * batches * rounds, settings.warmup_epochs * batches)
    live = {"net": net, "optimizer": optimizer, "schedule": schedule}
    generators = _generators(seed, data.train.labels.device)
    book: Book = {
        "epoch": 0,
        "batch": 0,
        "loss": 0.0,
        "failed": [0, 0],
        "solved": 0,
        "history": [],
        "best": None,
        "memory": {},
        "directions": {},  # of the searches of the penalty
        "limits": {},  # where the estimates of norms stand, of steps that are held at their limit
        "seconds": 0.0,
    }
    state = store.latest() if store else None
    if state:
        _restore(state, live, generators, book)
    else:
        _settle_statistics(net, data.train.images[:CALIBRATED])
    forward, started, saved = low_precision(net, settings.precision), time.monotonic() - book["seconds"], time.monotonic()
    while book["epoch"] < passes and not (settings.stop_overfitting and _overfitted(book["history"])):
        _training_mode(net)
        before = generators["order"].get_state()
        order = torch.randperm(len(data.train), generator=generators["order"]).to(data.train.labels.device)
        parts = order[: batches * settings.batch_size].chunk(batches)
        while book["batch"] < batches:
            x, y = data.train.images[parts[book["batch"]]], data.train.labels[parts[book["batch"]]]
            x = augment(x, data.name, generators["augment"], settings.augment)
            for _ in range(rounds):
                with products(settings.precision):
                    loss = _loss(net, forward, x, y, settings, generators["noise"], book)
                    _descend(net, x, loss, live, book)
            book["batch"] += 1
            progress(book["epoch"] * batches + book["batch"], passes * batches)
            book["seconds"] = time.monotonic() - started
            if store and time.monotonic() - saved >= settings.checkpoint_seconds:
                # The order is drawn anew when this epoch is taken up.
                store.save(_snapshot(live, {**generators, "order": torch.Generator().set_state(before)}, book))
                saved = time.monotonic()
        _close_epoch(net, data, settings, book, batches * rounds, say)
        book["seconds"] = time.monotonic() - started
        left = (passes - 1) * book["seconds"]
        if book["epoch"] == 1 and left > LONG:
            say(f"epoch 1 took {duration(book['seconds'])}: {count(passes - 1, 'epoch')} more take about {duration(left)}")
        if store:
            store.save(_snapshot(live, generators, book))
            saved = time.monotonic()
    return _finish(net, settings, book)


def _training_mode(net: nn.Module) -> None:
    """Training mode, but for BatchNorm: neither the passes of a solve nor those of an attack shall move its statistics."""
    net.train()
    for norm in _norms(net):
        norm.eval()


@torch.no_grad()
def _settle_statistics(net: nn.Module, images: Tensor) -> None:
    """Give a BatchNorm that has seen nothing the statistics of some images, under explicit Euler whatever the scheme."""
    fresh = [norm for norm in _norms(net) if norm.track_running_stats and not norm.num_batches_tracked]
    if not fresh:
        return
    before = {stage: (stage.scheme, stage.substeps) for stage in odenets.stages(net).values()}
    momenta = [norm.momentum for norm in fresh]
    for stage in before:
        stage.configure(scheme="explicit", substeps=1)
    for norm in fresh:
        norm.train()
        norm.momentum = 1.0  # the statistics of this batch
    net(images)
    for norm, momentum in zip(fresh, momenta):
        norm.eval()
        norm.momentum = momentum
    for stage, (scheme, substeps) in before.items():
        stage.configure(scheme=scheme, substeps=substeps)


def _norms(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _loss(
    net: nn.Module,
    forward: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
    book: Book,
) -> Tensor:
    """The loss of a batch: the one place where it is put together."""
    # Attacked from the first step on, a net may never leave the uniform guess: some protocols begin with clean images.
    method = "standard" if book["epoch"] < settings.clean_epochs else settings.training
    # The penalty first: the statistics of the solves shall be those of the passes that are differentiated.
    penalty = settings.log_norm_penalty and settings.log_norm_penalty * stability.log_norm_penalty(
        net, x, iterations=3, samples=16, directions=book["directions"]
    )
    return adversarial_training.METHODS[method](forward, x, y, settings, generator, book["memory"]) + penalty


def _descend(net: nn.Module, x: Tensor, loss: Tensor, live: dict[str, Any], book: Book) -> None:
    """One step of the optimiser and of its schedule, and what the solves in it report."""
    live["optimizer"].zero_grad()
    loss.backward()
    ways = [way for way in (odenets.converged(net), odenets.converged(net, backward=True)) if way is not None]
    if ways:
        book["failed"] = [count + int((~way).sum()) for count, way in zip(book["failed"], ways)]
        book["solved"] += len(ways[0])
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), TrainingSettings.gradient_clip)
    value, norm = torch.stack([loss.detach(), norm]).tolist()
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise Divergence(_divergence(net, x, value, norm, book["epoch"] + 1))
    live["optimizer"].step()
    live["schedule"].step()
    odenets.hold(net, book["limits"])
    book["loss"] += value


def _divergence(net: nn.Module, x: Tensor, value: float, norm: float, epoch: int) -> str:
    """The sentence that a diverged training ends with; `net` still has the weights from before the step."""
    try:
        reason = str(stability.explain(net, x[:EXPLAINED]))
    except (ValueError, RuntimeError) as error:  # the explanation must not hide what it explains
        reason = f"no explanation ({error})"
    return (
        f"training diverged: the loss is {value:g}, its gradient has norm {norm:g}, in epoch {epoch}; lower "
        f"--learning-rate. {reason}"
    )


def _close_epoch(net: nn.Module, data: Data, settings: TrainingSettings, book: Book, steps: int, say: Say) -> None:
    """Judge the epoch that has ended, keep its weights if none was better, and tell of overfitting to single steps."""
    net.eval()
    epoch = Epoch(book["epoch"] + 1, book["loss"] / steps, accuracy(net, data.held_out))
    if is_approximate(net):
        batch = data.train.first(settings.batch_size)
        epoch = replace(epoch, gradient_cosine=gradient_cosine(net, batch.images, batch.labels))
    score, history = epoch.held_out, [Epoch(**entry) for entry in book["history"]]
    if settings.training == "margin":
        score = _held_out_margins(net, data.held_out, settings)
    elif settings.training != "standard":
        attacked = _held_out_attacks(net, data, settings.train_epsilon)
        epoch, score = replace(epoch, **attacked), attacked["held_out_pgd"]
        epoch = replace(epoch, overfitting=adversarial_training.collapsed([*history, epoch], data.classes))
        if epoch.overfitting and not _overfitted(book["history"]):
            say(
                f"epoch {epoch.epoch}: catastrophic overfitting: on held-out images accuracy under PGD fell to {score:.2f}, "
                f"under FGSM it is {epoch.held_out_fgsm:.2f}; --training pgd or a smaller --train-epsilon avoids it"
            )
    say(epoch)
    book["history"].append(asdict(epoch))  # plain: it is part of what a checkpoint holds
    if settings.select == "last" or book["best"] is None or score >= book["best"]["score"]:
        book["best"] = {"epoch": epoch.epoch, "score": score}
        if settings.select == "best":
            book["best"]["weights"] = copy.deepcopy(net.state_dict())
    book.update(epoch=book["epoch"] + 1, batch=0, loss=0.0)


def _overfitted(history: Sequence[Any]) -> bool:
    return bool(history) and bool(history[-1].get("overfitting"))


def _held_out_attacks(net: nn.Module, data: Data, epsilon: float) -> dict[str, Any]:
    """Accuracies on held-out images under a short PGD and under FGSM; a twentieth as many images as are trained on, but 256."""
    split = data.held_out.first(max(256, len(data.train) // 20))
    threat, pair = stability.Linf(epsilon), (split.images, split.labels)
    with configured(net, gradient="exact"), exact_backward(net):
        attacked = {
            "held_out_pgd": stability.pgd(net, *pair, threat, steps=SELECTION_STEPS),
            "held_out_fgsm": stability.fgsm(net, *pair, threat),
        }
    return {name: accuracy(net, Split(images, split.labels)) for name, images in attacked.items()}


@torch.no_grad()
def _held_out_margins(net: nn.Module, split: Split, settings: TrainingSettings) -> float:
    """Share of a split that is right with the margin that training aims at."""
    pairs = zip(split.images.split(500), split.labels.split(500))
    right = sum(int((adversarial_training.lowered(net(x), y, settings).argmax(1) == y).sum()) for x, y in pairs)
    return right / len(split)


def _finish(net: nn.Module, settings: TrainingSettings, book: Book) -> Trained:
    best = book["best"]
    if settings.select == "best":
        net.load_state_dict(best["weights"])
    odenets.prove_limits(net)
    net.eval()
    history = tuple(Epoch(**entry | {"chosen": entry["epoch"] == best["epoch"]}) for entry in book["history"])
    shares = [count / book["solved"] if book["solved"] else 0.0 for count in book["failed"]]
    names = ("training_unconverged_share", "training_backward_unconverged_share")
    return Trained(history, dict(zip(names, shares)), best["epoch"], book["seconds"])


@torch.no_grad()
def accuracy(net: nn.Module, split: Split, batch_size: int = 500) -> float:
    """Share of a split that `net` classifies correctly, at the tolerance of its own scheme."""
    pairs = zip(split.images.split(batch_size), split.labels.split(batch_size))
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in pairs) / len(split)


def _generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """The order on the CPU, the rest where the images are; the CPU's generator takes 32 bits of its seed."""
    seeds = [(seed + part * 0x9E3779B1) % 2**32 for part in range(3)]
    return {
        "order": torch.Generator().manual_seed(seeds[0]),
        "noise": torch.Generator(device).manual_seed(seeds[1]),
        "augment": torch.Generator(device).manual_seed(seeds[2]),
    }


def _snapshot(live: dict[str, Any], generators: Generators, book: Book) -> dict[str, Any]:
    return {
        **{name: part.state_dict() for name, part in live.items()},
        "book": book,
        "generators": {name: generator.get_state() for name, generator in generators.items()},
    }


def _restore(state: Mapping[str, Any], live: dict[str, Any], generators: Generators, book: Book) -> None:
    for name, part in live.items():
        part.load_state_dict(state[name])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    book.update(state["book"])
    device = next(live["net"].parameters()).device
    book["memory"] = {name: tensor.to(device) for name, tensor in book["memory"].items()}
