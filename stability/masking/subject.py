"""What the checks of the audit share: the `Case` they look at, the `Check` they return, the judge."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from scipy.stats import binom
from torch import nn

from odenets import ODEStage, Outcome, Scheme, WarmStart, evaluate, stages, tightened
from stability.attacks.gradient import pgd
from stability.attacks.images import evaluating, identities, indexed, split, takes_indices, told
from stability.attacks.judge import WorstCase, worst_case
from stability.masking.roots import off_path
from stability.types import Flags, Images, Indices, Judge, Labels, Logits, Net, Threat

JUDGE_TOLERANCE = 1e-6
# What others climb: the audit looks for what hides from it, and ours finds its way out of a saturated softmax.
PLAIN = "plain_cross_entropy"
ATTACK_TOLERANCE = 1e-3  # gradients at 1e-3 find what those at 1e-5 find; looser ones attack another function than the judge's


@dataclass(frozen=True)
class Check:
    """One verdict.

    name: as in `CHECKS`. passed: None where the check does not apply. figures: what was found. thresholds: what figures of that
    name are held to. reason: why, in a sentence.
    """

    name: str
    passed: bool | None
    figures: dict[str, Any]
    thresholds: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'n/a' if self.passed is None else 'passed' if self.passed else 'FAILED'}, {self.reason}"


@dataclass(frozen=True, eq=False)
class Case:
    """What is audited, and what several checks share; see `audit` for the fields."""

    net: nn.Module
    x: Images
    y: Labels
    threat: Threat
    steps: int
    many_steps: tuple[int, ...]
    queries: int
    sources: tuple[Scheme, ...]
    seed: int
    batch_size: int

    def attack(self, **settings: Any) -> Callable[..., Images]:
        """PGD as it is set here, from the same noise each time, on the function that the judge evaluates."""
        return before_the_judge(self.plain_attack(**settings), self.batch_size)

    def plain_attack(self, **settings: Any) -> Callable[..., Images]:
        """The same, on the network as it is set."""

        @indexed
        def attack(net: Net, x: Images, y: Labels, indices: Indices) -> Images:
            generator = torch.Generator().manual_seed(self.seed)
            settings_ = {"threat": self.threat, "steps": self.steps, "loss": PLAIN, **settings}
            return pgd(net, x, y, generator=generator, indices=indices, batch_size=self.batch_size, **settings_)

        return attack

    @cached_property
    def _tried(self) -> dict[tuple[tuple[Scheme, str], ...], tuple[Flags, Images]]:
        return {}

    @property
    def few(self) -> Callable[..., Images]:
        """`plain_attack` with `steps` steps; an image is attacked once for each way in which the network is set.

        The noise hangs on the image alone, so that attacking the same function again would find the same.
        """
        attack = self.plain_attack()

        @indexed
        def once(net: Net, x: Images, y: Labels, indices: Indices) -> Images:
            setting = tuple((stage.scheme, stage.gradient) for stage in stages(self.net).values())
            known, found = self._tried.setdefault(setting, (torch.zeros(len(self.x), dtype=torch.bool), self.x.clone()))
            new = ~known[indices]
            if bool(new.any()):
                rows = new.nonzero()[:, 0].to(x.device)
                found[indices[new].to(x.device)] = attack(net, x[rows], y[rows], indices[new])
                known[indices[new]] = True
            return found[indices.to(x.device)]

        return once

    def judged(
        self, attacks: list[tuple[str, Callable[..., Any]]], threat: Threat | None = None, state: WorstCase | None = None
    ) -> WorstCase:
        """What attacks break under the cold judge, of all images or of those that a `WorstCase` left standing."""
        threat = threat or self.threat
        return worst_case(
            self.net, self.x, self.y, threat, attacks, cold_judge(self.net), batch_size=self.batch_size, state=state
        )

    @cached_property
    def clean(self) -> WorstCase:
        """The `WorstCase` without an attack, from which every attack goes on."""
        return self.judged([])

    @cached_property
    def white_box(self) -> WorstCase:
        """PGD with `steps` steps; on its survivors with each of `many_steps`; then with a loss that never saturates."""
        longer = [(f"pgd{steps}", self.attack(steps=steps)) for steps in self.many_steps]
        few = before_the_judge(self.few, self.batch_size)
        return self.judged([("few", few), *longer, ("margin", self.attack(loss="margin"))], state=self.clean)

    def broken_by(self, index: int) -> int:
        """Images that the white-box attack of this place broke, of those that the ones before it left."""
        return int((self.white_box.broken_by == index).sum())

    def another_start(self, rows: Flags) -> "Case":
        """These images, attacked from other noise."""
        return replace(self, x=self.x[rows], y=self.y[rows], seed=self.seed + 1)

    def lucky(self, rows: Flags) -> int:
        """Of these images, how many the first attack breaks from another start."""
        again = self.another_start(rows)
        return int((again.judged([("few", again.attack())]).broken_by == 0).sum())

    def left_by_own(self) -> Flags:
        """(B,) bool: right after PGD with `steps` steps, both at the network's own settings."""
        adversarial = self.few(WarmStart(self.net), self.x, self.y, torch.arange(len(self.x)))
        return self.evaluated(adversarial)[0].argmax(1) == self.y

    def broken_further(self, attacks: list[tuple[str, Callable[..., Any]]]) -> list[int]:
        """For each attack, how many images it breaks of those that the white-box ones and those before it left."""
        verdict = self.judged(attacks, state=self.white_box)
        before = len(self.white_box.names)
        return [int((verdict.broken_by == before + index).sum()) for index in range(len(attacks))]

    @torch.no_grad()
    def evaluated(self, x: Images) -> tuple[Logits, Outcome]:
        """(logits, `Outcome`) of the network at its present settings, in batches."""
        logits, outcomes = zip(*(evaluate(self.net, part.clone()) for part in x.split(self.batch_size)))
        return torch.cat(logits), Outcome.joined(outcomes)

    @property
    def points(self) -> dict[str, Images]:
        """The images, and what the white-box attacks made of them."""
        return {"clean": self.x, "adversarial": self.white_box.x_adv}

    @cached_property
    def own(self) -> dict[str, tuple[Logits, Outcome]]:
        """{"clean", "adversarial"}: (logits, `Outcome`) at the network's own settings."""
        return {name: self.evaluated(x) for name, x in self.points.items()}

    @cached_property
    def tight(self) -> dict[str, tuple[Logits, Outcome]]:
        """The same at the judge's tolerance."""
        with refined(self.net):
            return {name: self.evaluated(x) for name, x in self.points.items()}

    @property
    def iterated(self) -> list[ODEStage]:
        """The stages whose step is an iteration: only there can a gradient differ from autograd's."""
        return [stage for stage in stages(self.net).values() if stage.scheme.iterates]


@dataclass(frozen=True, eq=False)
class ColdJudge:
    """A judge of one network; see `cold_judge`."""

    net: nn.Module
    tol: float
    takes_labels: ClassVar[bool] = True

    def __call__(self, x: Images, y: Labels | None = None) -> tuple[Logits, Flags | None]:
        """(logits, trusted) of images (B, ...); trusted (B,) bool, None where no equation was solved."""
        with tightened(self.net, self.tol):
            logits, outcome = evaluate(self.net, x.clone())
            solved = outcome.converged
            if solved is None:
                return logits, None
            asked = solved if y is None else solved & (logits.argmax(1) == y)
            return logits, solved & ~off_path(self.net, x, logits, asked)


def cold_judge(net: nn.Module, tol: float = JUDGE_TOLERANCE) -> Judge:
    """A judge for `worst_case`: solves anew to `tol` and trusts an image whose implicit solves all converged, to the roots
    connected to its states: logits that hang on the path of the solver (`path_dependent`) are nobody's answer.

    Called with x it says so of every image; with x and y the path is not asked for where an image is misclassified anyway.
    """
    return ColdJudge(net, tol)


def before_the_judge(attack: Callable[..., Any], batch_size: int = 512) -> Callable[..., Images]:
    """An attack on the function that `cold_judge` evaluates, for `worst_case`.

    Equations are solved to 1e-3 (or tighter, where the net's own tolerance is). An image that falls there while the judge
    still finds it right is attacked again at the judge's tolerance: otherwise a loose solve would end attacks early, and
    the looser the tolerance, the more robust a net would seem. Solves start from those of the step before, as a
    `odenets.WarmStart`, where the attack says which images it shows.

    Args:
        attack: As for `worst_case`, (net, x, y) -> adversarial images, told `indices` where it takes them.
        batch_size: Images judged at once.
    """

    @indexed
    def on_its_function(net: nn.Module, x: Images, y: Labels, indices: Indices | None = None) -> Images:
        indices = identities(indices, x)
        eyes = WarmStart(net) if takes_indices(attack) and any(stage.scheme.solves for stage in stages(net).values()) else net
        with tightened(net, ATTACK_TOLERANCE, max_iterations=1):
            adversarial = attack(eyes, x.clone(), y, **told(attack, indices)).detach()
            fallen = _wrong(eyes, adversarial, y, indices, batch_size).nonzero()[:, 0]
        with tightened(net, JUDGE_TOLERANCE):
            known = indices[fallen.cpu()]
            right = ~_wrong(net, adversarial[fallen], y[fallen], known, batch_size)
            if bool(right.any()):
                again = fallen[right]
                adversarial = adversarial.clone()
                adversarial[again] = attack(eyes, x[again], y[again], **told(attack, known[right.cpu()])).detach()
        return adversarial

    return on_its_function


@torch.no_grad()
def _wrong(net: Net, x: Images, y: Labels, indices: Indices, batch_size: int) -> Flags:
    """(B,) bool, misclassified as the attack did it and the judge will."""
    with evaluating(net):
        parts = split(batch_size, x, y, indices) if len(x) else ()
        return torch.cat(
            [y[:0] < 0, *(net(part.clone(), **told(net, known)).argmax(1) != right for part, right, known in parts)]
        )


def allowed(share: float, count: int) -> int:
    """Most images out of `count` that a true share would give with 95 % probability."""
    return int(binom.ppf(0.95, count, share))


@contextmanager
def configured(net: nn.Module, **settings: Any) -> Iterator[nn.Module]:
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
def refined(net: nn.Module, tol: float = JUDGE_TOLERANCE) -> Iterator[nn.Module]:
    """Within the context whatever is computed to a tolerance is computed to `tol`: equations and adaptive steps alike.

    Adaptive steps by dopri5, whose order makes that affordable.
    """
    with tightened(net, tol):  # which gives every stage its own scheme back, the adaptive ones too
        for stage in stages(net).values():
            scheme: Any = stage.scheme
            if scheme.adaptive:
                stage.configure(scheme=replace(scheme, method="dopri5", rtol=min(tol, scheme.rtol), atol=min(tol, scheme.atol)))
        yield net
