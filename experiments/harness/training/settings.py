"""The settings of a training, each stated once: default, range and help."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from experiments.harness.config import option, read_options
from experiments.harness.training.augmentation import AUGMENTATIONS, DEFAULT
from experiments.harness.training.gradient import GRADIENTS
from experiments.harness.training.losses import METHODS, STEP_SIZE, STEPS
from experiments.harness.training.optim import OPTIMIZERS, SCHEDULES, check_warmup
from experiments.harness.training.precision import PRECISIONS

SELECTIONS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained; None: as `resolved` says. gradient_clip: in the 2-norm, of all parameters together."""

    gradient_clip: ClassVar[float] = 5.0

    training: str = option("standard", "", choices=METHODS)
    train_epsilon: float = option(0.1, "radius of the training attack", minimum=0, implied="the middle one of --epsilons")
    train_steps: int | None = option(
        None, "its steps", minimum=1, implied=", ".join(f"{steps} for {name}" for name, steps in STEPS.items())
    )
    train_step_size: float | None = option(
        None,
        "size of a step",
        minimum=0,
        implied="by method: pgd 2.5 epsilon / steps, summed and trades epsilon / 4, free epsilon, fast 1.25 epsilon",
    )
    trades_beta: float = option(6.0, "weight of the divergence in TRADES", minimum=0)
    margin_offset: float = option(1.0, "radius that margin training aims at, in L2", minimum=0)
    margin_temperature: float = option(0.25, "of the logits in margin training", minimum=1e-6)
    free_replays: int = option(4, "uses of a batch in Free training", minimum=1)
    train_gradient: str = option(
        "exact",
        "that training and its attacks follow; detached: of the explicit predictor alone, as in the code of Li, He, Lin; what "
        "is measured follows the exact one in any case",
        choices=GRADIENTS,
    )
    epochs: int = option(20, "passes of gradients over the training images, replays counted", minimum=1, implied="by data set")
    clean_epochs: int = option(
        0, "so many epochs on clean images first; 1 helps where an attacked net does not leave the uniform guess", minimum=0
    )
    batch_size: int = option(64, "", minimum=1)
    optimizer: str = option("adamw", "sgd has momentum 0.9", choices=OPTIMIZERS)
    learning_rate: float | None = option(
        None,
        "peak of the schedule",
        minimum=1e-8,
        implied=", ".join(f"{rates['learning_rate']:g} for {name}" for name, rates in OPTIMIZERS.items()),
    )
    weight_decay: float | None = option(
        None,
        "of the optimiser",
        minimum=0,
        implied=", ".join(f"{rates['weight_decay']:g} for {name}" for name, rates in OPTIMIZERS.items()),
    )
    schedule: str = option("one-cycle", "of the learning rate", choices=SCHEDULES)
    warmup_epochs: int = option(
        0, "so many epochs in which the learning rate rises linearly; one-cycle has a rise of its own", minimum=0
    )
    select: str = option(
        "best",
        "best: the epoch that is best on held-out training images, under a short PGD where training "
        "is adversarial; last: the last one",
        choices=SELECTIONS,
    )
    stop_overfitting: bool = option(False, "end an adversarial training that has overfitted to single steps")
    augment: str = option("none", "crops, mirror images; rotations too", choices=AUGMENTATIONS, implied="standard for CIFAR")
    precision: str = option("float32", "of training; all else is float32", choices=PRECISIONS)
    log_norm_penalty: float = option(
        0.0, "weight of the mean of max(0, mu_2) over blocks and images in the loss; 0: none", minimum=0
    )
    checkpoint_seconds: float = option(300.0, "save the state of a training that often, and after each epoch", minimum=0)

    @property
    def steps(self) -> int:
        """Of the training attack: as set, else those of the method's source."""
        return self.train_steps or STEPS[self.training] if self.training in STEPS else 1

    @property
    def step_size(self) -> float:
        """Of the training attack, in pixel units: as set, else that of the method's source."""
        known = self.train_step_size
        return self.train_epsilon * STEP_SIZE.get(self.training, lambda steps: 1.0)(self.steps) if known is None else known

    def resolved(self) -> "TrainingSettings":
        """With the steps and the step size of the method's source, and the rates of the optimiser, where they are None."""
        rates = OPTIMIZERS[self.optimizer]
        chosen: dict[str, Any] = {name: rates[name] if getattr(self, name) is None else getattr(self, name) for name in rates}
        return replace(self, train_steps=self.steps, train_step_size=self.step_size, **chosen)


def training_settings(args: Any, dataset: str, epochs: int, epsilon: float) -> TrainingSettings:
    """The settings that the options of `TrainingSettings` stand for, resolved.

    Args:
        args: Parsed options.
        dataset, epochs, epsilon: The data set, and what holds where the user names no epochs and no radius.

    Raises:
        ValueError: Names what is wrong and what is valid.
    """
    implied: dict[str, Any] = {"epochs": epochs, "train_epsilon": epsilon, "augment": DEFAULT.get(dataset, "none")}
    settings = TrainingSettings(**implied | read_options(args, TrainingSettings))
    check_warmup(settings.schedule, settings.warmup_epochs)
    return settings.resolved()
