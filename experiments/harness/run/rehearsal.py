"""A user's own parts tried on two images before a run begins: what would fail after an hour of training fails at once."""

import copy
from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import stability
from experiments.harness.run import checkpoints
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig
from experiments.harness.training.data import Data
from experiments.harness.words import count
from odenets.errors import EXPECTED, InputError, sentence
from odenets.own import is_own
from stability.attacks.images import check_logits
from stability.attacks.threats import THREATS


def rehearse(config: RunConfig, cases: Iterable[Case], data: Data) -> None:
    """One training step of every kind of net that has a part of a user's own; each attack and predictor on the first of them.

    Raises:
        InputError: Names the part, and the line of the user's code that failed.
    """
    threat: Any = THREATS[config.threat]
    predictors = [stability.get_predictor(name) for name in config.predictors]
    attacks = [name for name in config.attacks if is_own(name)]
    kinds = list(dict.fromkeys(case.kind for case in cases))
    own = [
        case for case in kinds if attacks or predictors or any(is_own(part) for part in (config.model, case.scheme, case.field))
    ]
    x, y = data.train.images[:2], data.train.labels[:2]
    for case in own:
        parts = [part for part in (config.model, case.scheme, case.field) if is_own(part)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = checkpoints.build(
                {
                    "model": config.model,
                    "num_classes": data.classes,
                    "in_channels": data.channels,
                    "scheme": case.scheme,
                    "substeps": case.substeps,
                    "field": case.field,
                }
            ).eval()
            what = f"{', '.join(parts) or config.model} cannot be trained on images of shape {tuple(x.shape[1:])}"
            try:
                logits = net(x.clone())
                check_logits(logits, y)
                F.cross_entropy(logits, y).backward()
                if logits.shape[1] != data.classes:
                    raise InputError(f"it gives {logits.shape[1]} logits, and there are {data.classes} classes")
                for name in attacks if case == own[0] else ():
                    what = f"{name} cannot attack"
                    stability.get_attack(name).bound(threat(config.audit_epsilon), 0)(net, x.clone(), y)
                what = f"{', '.join(config.predictors)} cannot be measured"
                measured = case == own[0] and predictors
                blocks = stability.dynamics(copy.deepcopy(net).double(), x[:1].double(), 4) if measured else []
            except Exception as error:  # the user's code may raise whatever it likes
                raise InputError(f"{what}: {sentence(error)}") from (None if isinstance(error, EXPECTED) else error)
        check_predictors(predictors, blocks)


def check_predictors(predictors: Iterable[stability.Predictor], blocks: Iterable[stability.BlockDynamics]) -> None:
    """InputError, with the user's line, where a predictor gives no value for each sample of a block."""
    for predictor, block in product(predictors, blocks):
        try:
            values, samples = predictor.value(block), len(block.log_norm)
            if values is not None and (not isinstance(values, Tensor) or values.shape != (samples,)):
                raise InputError(
                    f"it gave {values!r} of {count(samples, 'sample')}; a predictor gives a tensor (samples,), or None"
                )
        except Exception as error:  # as above
            raise InputError(f"{predictor.name} cannot be measured: {sentence(error)}") from error
