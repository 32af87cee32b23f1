"""Optimisers and learning-rate schedules by name; a schedule takes one step for each step of the optimiser."""
from torch import optim
from torch.optim import lr_scheduler

# The learning rate (the peak of a schedule) and the weight decay where the user names none: AdamW's is torch's, SGD's are the
# protocol of Li, He, Lin (2020).
OPTIMIZERS = {"adamw": {"learning_rate": 6e-3, "weight_decay": 0.01}, "sgd": {"learning_rate": 0.1, "weight_decay": 5e-4}}
SCHEDULES = {
    # One step more than there are: the last of the cycle has a learning rate of nearly 0.
    "one-cycle": lambda optimizer, peak, total: lr_scheduler.OneCycleLR(optimizer, peak, total_steps=total + 1),
    "cosine": lambda optimizer, peak, total: lr_scheduler.CosineAnnealingLR(optimizer, total),
    # A tenth after 2/3, 5/6 and 14/15 of the way: epochs 100, 125 and 140 of 150, as in Li, He, Lin (2020).
    "multistep": lambda optimizer, peak, total: lr_scheduler.MultiStepLR(
        optimizer, [round(total * share) for share in (2 / 3, 5 / 6, 14 / 15)]),
    "constant": lambda optimizer, peak, total: lr_scheduler.ConstantLR(optimizer, 1.0, total),
    "linear": lambda optimizer, peak, total: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total),
}


def make_optimizer(parameters, settings):
    """AdamW or SGD with momentum 0.9, as `settings` say: optimizer, learning_rate, weight_decay."""
    rates = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}
    if settings["optimizer"] == "adamw":
        return optim.AdamW(parameters, **rates)
    return optim.SGD(parameters, momentum=0.9, **rates)


def make_schedule(optimizer, settings, total):
    """The schedule that `settings` name, over `total` steps of the optimiser."""
    return SCHEDULES[settings["schedule"]](optimizer, settings["learning_rate"], total)
