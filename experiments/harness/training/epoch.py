"""What is known of an epoch once it has ended."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """An epoch of a training. held_out: accuracy on held-out images, clean and under attack where training is adversarial.
    gradient_cosine: of the gradient followed to the exact one, on a batch at the epoch's end, where it is an approximate one.
    """

    epoch: int
    loss: float
    held_out: float
    chosen: bool = False
    held_out_pgd: float | None = None
    held_out_fgsm: float | None = None
    overfitting: bool | None = None
    gradient_cosine: float | None = None


Say = Callable[[str | Epoch], None]  # told what the user should read, and each epoch that has ended
