"""What the checks of the audit share: the `Case` they look at, the `Check` they return, the judge."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scipy.stats import binom
from torch import nn

from odenets import evaluate, stages, tightened
from stability.attacks.gradient import pgd
from stability.attacks.images import accepts_indices, evaluated, evaluating
from stability.attacks.judge import worst_case
from stability.masking.roots import off_path

JUDGE_TOLERANCE = 1e-6
# What others climb: the audit looks for what hides from it, and ours finds its way out of a saturated softmax.
PLAIN = "plain_cross_entropy"
ATTACK_TOLERANCE = 1e-3  # gradients at 1e-3 find what those at 1e-5 find; looser ones attack another function than the judge's


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
    many_steps: tuple
    queries: int
    sources: tuple
    seed: int
    batch_size: int

    def attack(self, **settings):
        """PGD as it is set here, from the same noise each time, on the function that the judge evaluates."""
        return before_the_judge(self.plain_attack(**settings), self.batch_size)

    def plain_attack(self, **settings):
        """The same, on the network as it is set."""

        def attack(net, x, y, indices):
            generator = torch.Generator().manual_seed(self.seed)
            settings_ = {"threat": self.threat, "steps": self.steps, "loss": PLAIN, **settings}
            return pgd(net, x, y, generator=generator, indices=indices, batch_size=self.batch_size, **settings_)

        return attack

    def judged(self, attacks, threat=None, state=None):
        """What attacks break under the cold judge, of all images or of those that a `WorstCase` left standing."""
        threat = threat or self.threat
        return worst_case(self.net, self.x, self.y, threat, attacks, cold_judge(self.net), self.batch_size, state)

    @cached_property
    def white_box(self):
        """PGD with `steps` steps; on its survivors with each of `many_steps`; then with a loss that never saturates."""
        longer = [(f"pgd{steps}", self.attack(steps=steps)) for steps in self.many_steps]
        return self.judged([("few", self.attack()), *longer, ("margin", self.attack(loss="margin"))])

    def broken_by(self, index):
        """Images that the white-box attack of this place broke, of those that the ones before it left."""
        return int((self.white_box.broken_by == index).sum())

    def broken_further(self, attacks):
        """For each attack, how many images it breaks of those that the white-box ones and those before it left."""
        verdict = self.judged(attacks, state=self.white_box)
        before = len(self.white_box.names)
        return [int((verdict.broken_by == before + index).sum()) for index in range(len(attacks))]

    @torch.no_grad()
    def logits(self, x):
        """The network's, at its present settings, in batches."""
        return torch.cat([evaluated(self.net, part) for part in x.split(self.batch_size)])

    @property
    def iterated(self):
        """The stages whose step is an iteration: only there can a gradient differ from autograd's."""
        return [stage for stage in stages(self.net).values() if stage.scheme.iterates]


def cold_judge(net, tol=JUDGE_TOLERANCE):
    """A judge for `worst_case`: solves anew to `tol` and trusts an image whose implicit solves all converged, to the roots
    connected to its states: logits that hang on the path of the solver (`path_dependent`) are nobody's answer."""

    def judge(x):
        with tightened(net, tol):
            logits, outcome = evaluate(net, x.clone())
            solved = outcome.converged
            return logits, solved if solved is None else solved & ~off_path(net, x, logits, solved)

    return judge


def before_the_judge(attack, batch_size=512):
    """An attack on the function that `cold_judge` evaluates, for `worst_case`.

    Equations are solved to 1e-3 (or tighter, where the net's own tolerance is). An image that falls there while the judge
    still finds it right is attacked again at the judge's tolerance: otherwise a loose solve would end attacks early, and
    the looser the tolerance, the more robust a net would seem.

    Args:
        attack: As for `worst_case`, (net, x, y) -> adversarial images, told `indices` where it takes them.
        batch_size: Images judged at once.
    """
    tell = accepts_indices(attack)

    def on_its_function(net, x, y, indices):
        with tightened(net, ATTACK_TOLERANCE, max_iterations=1):
            adversarial = attack(net, x.clone(), y, **({"indices": indices} if tell else {})).detach()
            fell = _wrong(net, adversarial, y, batch_size)
        with tightened(net, JUDGE_TOLERANCE):
            again = fell & ~_wrong(net, adversarial, y, batch_size)
            if bool(again.any()):
                adversarial = adversarial.clone()
                given = {"indices": indices[again.to(indices.device)]} if tell else {}
                adversarial[again] = attack(net, x[again], y[again], **given).detach()
        return adversarial

    return on_its_function


@torch.no_grad()
def _wrong(net, x, y, batch_size):
    with evaluating(net):  # as the attack did and the judge will
        return torch.cat([evaluated(net, part).argmax(1) for part in x.split(batch_size)]) != y


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


@contextmanager
def refined(net, tol=JUDGE_TOLERANCE):
    """Within the context whatever is computed to a tolerance is computed to `tol`: equations and adaptive steps alike.

    Adaptive steps by dopri5, whose order makes that affordable.
    """
    with tightened(net, tol):  # which gives every stage its own scheme back, the adaptive ones too
        for stage in stages(net).values():
            scheme = stage.scheme
            if scheme.adaptive:
                stage.configure(scheme=replace(scheme, method="dopri5", rtol=min(tol, scheme.rtol), atol=min(tol, scheme.atol)))
        yield net
