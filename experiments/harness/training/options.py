"""The options of training on the command line, and the settings they stand for."""
from argparse import BooleanOptionalAction

from experiments.harness.command import parse_choice, parse_one
from experiments.harness.training.augmentation import AUGMENTATIONS, DEFAULT
from experiments.harness.training.loop import DEFAULTS, SELECTIONS
from experiments.harness.training.losses import METHODS, STEPS, resolved
from experiments.harness.training.optim import OPTIMIZERS, SCHEDULES, check_warmup
from experiments.harness.training.precision import PRECISIONS


def add_training_arguments(parser):
    """The options; None stands for a default that depends on the data set or on another option."""
    add, default = parser.add_argument, {key.replace("_", "-"): str(value) for key, value in DEFAULTS.items()}
    add("--training", default=default["training"], help=f"one of {', '.join(METHODS)}")
    add("--train-epsilon", help="radius of the training attack; default: the middle one of --epsilons")
    add("--train-steps", help=f"its steps; default: {', '.join(f'{steps} for {name}' for name, steps in STEPS.items())}")
    add("--train-step-size", help="size of a step; default by method: pgd 2.5 epsilon / steps, summed and trades epsilon / 4, "
                                  "free epsilon, fast 1.25 epsilon")
    add("--trades-beta", default=default["trades-beta"], help="weight of the divergence in TRADES")
    add("--free-replays", default=default["free-replays"], help="uses of a batch in Free training")
    add("--clean-epochs", default=default["clean-epochs"], help="so many epochs on clean images first; 1 helps where "
                                                                "an attacked net does not leave the uniform guess")
    add("--warmup-epochs", default=default["warmup-epochs"], help="so many epochs in which the learning rate rises linearly; "
                                                                  "one-cycle has a rise of its own")
    add("--epochs", help="passes of gradients over the training images, replays counted; default by data set")
    add("--batch-size", default=default["batch-size"])
    add("--optimizer", default=default["optimizer"], help=f"one of {', '.join(OPTIMIZERS)}; sgd has momentum 0.9")
    add("--learning-rate", help="peak of the schedule; default: "
                                + ", ".join(f"{rates['learning_rate']:g} for {name}" for name, rates in OPTIMIZERS.items()))
    add("--weight-decay", help="default: "
                               + ", ".join(f"{rates['weight_decay']:g} for {name}" for name, rates in OPTIMIZERS.items()))
    add("--schedule", default=default["schedule"], help=f"of the learning rate, one of {', '.join(SCHEDULES)}")
    add("--select", default=default["select"], help="best: the epoch that is best on held-out training images, under a short "
                                                    "PGD where training is adversarial; last: the last one")
    add("--stop-overfitting", action=BooleanOptionalAction, default=DEFAULTS["stop_overfitting"],
        help="end an adversarial training that has overfitted to single steps")
    add("--augment", help=f"one of {', '.join(AUGMENTATIONS)} (crops, mirror images; rotations too); default: standard for "
                          "CIFAR")
    add("--precision", default=default["precision"], help=f"of training, one of {', '.join(PRECISIONS)}; all else is float32")
    add("--log-norm-penalty", default=default["log-norm-penalty"],
        help="weight of the mean of max(0, mu_2) over blocks and images in the loss; 0: none")
    add("--checkpoint-seconds", default=default["checkpoint-seconds"],
        help="save the state of a training that often, and after each epoch")


def training_settings(args, dataset, epochs, epsilon):
    """The settings of `training.train`, JSON-ready, all of them resolved.

    Args:
        args: Parsed options.
        dataset, epochs, epsilon: The data set, and what holds where the user names no epochs and no radius.

    Raises:
        ValueError: Names what is wrong and what is valid.
    """
    for option, value, valid in (("--training", args.training, METHODS), ("--optimizer", args.optimizer, OPTIMIZERS),
                                 ("--schedule", args.schedule, SCHEDULES), ("--select", args.select, SELECTIONS),
                                 ("--augment", args.augment or "none", AUGMENTATIONS),
                                 ("--precision", args.precision, PRECISIONS)):
        parse_choice(value, option, valid)
    warmup_epochs = parse_one(args.warmup_epochs, "--warmup-epochs", int, 0)
    check_warmup(args.schedule, warmup_epochs)
    train_epsilon = parse_one(args.train_epsilon, "--train-epsilon", float, 0)
    rates = OPTIMIZERS[args.optimizer]
    weight_decay = parse_one(args.weight_decay, "--weight-decay", float, 0)
    return resolved({
        "training": args.training, "train_epsilon": epsilon if train_epsilon is None else train_epsilon,
        "train_steps": parse_one(args.train_steps, "--train-steps", int, 1),
        "train_step_size": parse_one(args.train_step_size, "--train-step-size", float, 0),
        "trades_beta": parse_one(args.trades_beta, "--trades-beta", float, 0),
        "free_replays": parse_one(args.free_replays, "--free-replays", int, 1),
        "clean_epochs": parse_one(args.clean_epochs, "--clean-epochs", int, 0),
        "warmup_epochs": warmup_epochs,
        "epochs": parse_one(args.epochs, "--epochs", int, 1) or epochs,
        "batch_size": parse_one(args.batch_size, "--batch-size", int, 1), "optimizer": args.optimizer,
        "learning_rate": parse_one(args.learning_rate, "--learning-rate", float, 1e-8) or rates["learning_rate"],
        "weight_decay": rates["weight_decay"] if weight_decay is None else weight_decay, "schedule": args.schedule,
        "select": args.select, "stop_overfitting": args.stop_overfitting,
        "augment": args.augment or DEFAULT.get(dataset, "none"), "precision": args.precision,
        "log_norm_penalty": parse_one(args.log_norm_penalty, "--log-norm-penalty", float, 0),
        "checkpoint_seconds": parse_one(args.checkpoint_seconds, "--checkpoint-seconds", float, 0),
    })
