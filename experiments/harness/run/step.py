"""A step of an evaluation: one attack on one network, or its audit; independent of the others, so that it can run anywhere."""

import time
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

import stability
from experiments.harness.run import measure as evaluation
from experiments.harness.run.config import EvaluationConfig
from experiments.harness.run.machine import provenance_of
from experiments.harness.run.places import Found, Say
from experiments.harness.run.schema import FULL, WHOLE
from experiments.harness.training.data import Split
from experiments.harness.words import radius
from stability.attacks.threats import THREATS
from stability.types import Progress

SEED = 0  # of the noise of the attacks


class Step(NamedTuple):
    """A measurement, independent of the others: of a network, by its name, an attack at a radius along a gradient."""

    network: str
    attack: str
    epsilon: float
    gradient: str

    @property
    def name(self) -> str:
        """For bars."""
        at = f" at {radius(self.epsilon)}" if self.epsilon else ""
        return f"{self.network}: {self.attack}{at}, {self.gradient}"

    @property
    def whose(self) -> str:
        """For sentences."""
        return self.network


def do_step(
    config: EvaluationConfig, shelf: Any, step: Step, progress: Progress, say: Say, supply: tuple[nn.Module, Split]
) -> Found:
    """A step, wherever: what its record says of it."""
    start, device, threat = time.perf_counter(), torch.device(config.device), THREATS[config.threat]
    net, test = supply[0].to(device), supply[1].to(device)
    if step.attack == "audit":
        extent = FULL if config.audit == "full" else WHOLE
        found: Found = {"audit": evaluation.measure_audit(net, test, step.epsilon, config.audit_images, threat, extent)}
    else:
        measured = (net, test, step.attack, step.epsilon, step.gradient, SEED, threat, _clean(net, supply[1], device))
        found = {"measurements": (evaluation.measure_attack(*measured),)}
    seconds = {"measurement": round(time.perf_counter() - start, 2)}
    return {"seconds": seconds, "made": provenance_of(config.device), **found}


@lru_cache(maxsize=1)
def _clean(net: nn.Module, test: Split, device: torch.device) -> stability.WorstCase:
    """What every attack on a network goes on from, judged once in each process."""
    return evaluation.judge_clean(net, test.to(device))
