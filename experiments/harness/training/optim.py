"""Optimisers and learning-rate schedules by name; a schedule takes one step for each step of the optimiser."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn, optim
from torch.optim import lr_scheduler

from odenets.errors import InputError

if TYPE_CHECKING:  # whose choices are the names of what stands here
    from experiments.harness.training.settings import TrainingSettings

# The learning rate (the peak of a schedule) and the weight decay where the user names none: AdamW's is torch's, SGD's are the
# protocol of Li, He, Lin (2020).
OPTIMIZERS = {"adamw": {"learning_rate": 6e-3, "weight_decay": 0.01}, "sgd": {"learning_rate": 0.1, "weight_decay": 5e-4}}
SCHEDULES = {
    # One step more than there are: the last of the cycle has a learning rate of nearly 0.
    "one-cycle": lambda optimizer, peak, total: lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1),
    "cosine": lambda optimizer, peak, total: lr_scheduler.CosineAnnealingLR(optimizer, total),
    # A tenth after 2/3, 5/6 and 14/15 of the way: epochs 100, 125 and 140 of 150, as in Li, He, Lin (2020).
    "multistep": lambda optimizer, peak, total: lr_scheduler.MultiStepLR(
        optimizer, [round(total * share) for share in (2 / 3, 5 / 6, 14 / 15)]
    ),
    "constant": lambda optimizer, peak, total: lr_scheduler.ConstantLR(optimizer, 1.0, total),
    "linear": lambda optimizer, peak, total: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total),
}


def check_warmup(schedule: str, epochs: int) -> None:
    """Refuse a linear rise of the learning rate before a schedule that sets it from the first step to the last."""
    if epochs and schedule == "one-cycle":
        others = ", ".join(name for name in SCHEDULES if name != "one-cycle")
        raise InputError(f"--warmup-epochs {epochs} needs a --schedule of {others}; one-cycle has a rise of its own")


def make_optimizer(parameters: Iterable[nn.Parameter], settings: "TrainingSettings") -> optim.Optimizer:
    """AdamW or SGD with momentum 0.9, as `settings` say: optimizer, learning_rate, weight_decay."""
    rates: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return optim.AdamW(parameters, **rates)
    return optim.SGD(parameters, momentum=0.9, **rates)


def make_schedule(optimizer: optim.Optimizer, settings: "TrainingSettings", total: int, warmup: int = 0) -> Any:
    """The schedule that `settings` name, over `total` steps of the optimiser, with a linear rise over the first `warmup`."""
    if not warmup:
        return SCHEDULES[settings.schedule](optimizer, settings.learning_rate, total)
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    return lr_scheduler.ChainedScheduler([rise, SCHEDULES[settings.schedule](optimizer, settings.learning_rate, total)])
