"""What the checks of the audit share: the `Case` they look at, the `Check` they return, the judge."""
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import binom
from torch import nn

from odenets import converged, stages, tightened
from stability.attacks import pgd
from stability.judge import worst_case

JUDGE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Check:
    """One verdict: passed (None: does not apply), its figures, what they are held to, and why in a sentence."""

    name: str
    passed: bool | None
    figures: dict
    thresholds: dict
    reason: str

    def __str__(self):
        return f"{self.name}: {'n/a' if self.passed is None else 'passed' if self.passed else 'FAILED'}, {self.reason}"


@dataclass(frozen=True, eq=False)
class Case:
    """What is audited, and what several checks share; see `audit` for the fields."""

    net: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    threat: object
    steps: int
    many_steps: int
    seed: int
    batch_size: int

    def attack(self, **settings):
        """PGD as it is set here, from the same noise each time."""
        def attack(net, x, y, indices):
            generator = torch.Generator().manual_seed(self.seed)
            settings_ = {"threat": self.threat, "steps": self.steps, **settings}
            return pgd(net, x, y, generator=generator, indices=indices, batch_size=self.batch_size, **settings_)
        return attack

    def judged(self, attacks, threat=None):
        """What attacks break under the cold judge."""
        threat = threat or self.threat
        return worst_case(self.net, self.x, self.y, threat, attacks, cold_judge(self.net), self.batch_size)

    @cached_property
    def white_box(self):
        """PGD with `steps` steps, then with `many_steps` on its survivors."""
        return self.judged([("few", self.attack()), ("many", self.attack(steps=self.many_steps))])

    @property
    def iterated(self):
        """The stages whose step is an iteration: only there can a gradient differ from autograd's."""
        return [stage for stage in stages(self.net).values() if stage.scheme.iterates]


def cold_judge(net, tol=JUDGE_TOLERANCE):
    """A judge for `worst_case`: solves anew to `tol` and trusts an image whose implicit solves all converged."""
    def judge(x):
        with tightened(net, tol):
            return net(x), converged(net)
    return judge


def allowed(share, count):
    """Most images out of `count` that a true share would give with 95 % probability."""
    return int(binom.ppf(0.95, count, share))


@contextmanager
def configured(net, **settings):
    """Within the context every stage has other settings (see `ODEStage.configure`); restored afterwards."""
    before = {stage: {key: getattr(stage, key) for key in settings} for stage in stages(net).values()}
    try:
        for stage in before:
            stage.configure(**settings)
        yield net
    finally:
        for stage, settings in before.items():
            stage.configure(**settings)
