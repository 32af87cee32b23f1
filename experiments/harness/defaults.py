"""What holds where the user says nothing: by data set, and in a smoke run."""

from typing import Any

# Radii of the balls in pixel units, and epochs, where the user names none.
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"linf": [0.05, 0.1, 0.15], "l2": [0.25, 0.5, 1.0], "epochs": 20},
    "mnist": {"linf": [0.1, 0.2, 0.3], "l2": [0.5, 1.0, 2.0], "epochs": 5},
    "fashion-mnist": {"linf": [0.02, 0.05, 0.1], "l2": [0.25, 0.5, 1.0], "epochs": 10},
    "cifar10": {"linf": [2 / 255, 4 / 255, 8 / 255], "l2": [0.25, 0.5, 1.0], "epochs": 20},
    "cifar100": {"linf": [2 / 255, 4 / 255, 8 / 255], "l2": [0.25, 0.5, 1.0], "epochs": 20},
}
OWN_DEFAULTS = DEFAULTS["cifar10"]  # of data of a user's own


def defaults_of(dataset: str) -> dict[str, Any]:
    """The radii and epochs of a data set where the user names none."""
    return DEFAULTS.get(dataset, OWN_DEFAULTS)


# A run that exercises every path in seconds; its numbers mean nothing. What the user names stays as it is.
SMOKE: dict[str, Any] = {
    "epochs": 1,
    "seeds": (0,),
    "train_limit": 128,
    "test_limit": 24,
    "attacks": ("pgd2",),
    "probe_images": 2,
    "audit_images": 8,
}
