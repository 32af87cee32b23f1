"""Every attack by name: `get_attack` reads a spec or a shorthand, `list_attacks` lists the names.

Adding an attack is one frozen dataclass here, its fields the settings of a function, and its place in `ATTACKS`; command lines,
plans and tables follow.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from stability.attacks.auto_pgd import apgd
from stability.attacks.autoattack import autoattack
from stability.attacks.gradient import fgsm, pgd
from stability.attacks.images import check_count
from stability.attacks.losses import objective_named
from stability.attacks.random_search import noise, square
from stability.errors import InputError, MissingExtra
from stability.specs import Own, canonical, find_own, is_own, read_arguments, read_name
from stability.types import Images, Indices, Labels, Net, Threat


@dataclass(frozen=True)
class Attack(ABC):
    """An attack and its settings, compared by them. `str` is its shorthand where that says all, else its spec.

    name: As `list_attacks()` gives it. follows_gradient: whether what it finds depends on the gradient in use. count: the
    setting that a number behind the name stands for, as in pgd20. words: what a word behind that stands for, as in
    pgd20-margin. package: an optional package that it needs, with the extra that brings it.
    """

    name: ClassVar[str]
    follows_gradient: ClassVar[bool] = True
    count: ClassVar[str | None] = None
    words: ClassVar[dict[str, dict[str, Any]]] = {}
    package: ClassVar[tuple[str, str] | None] = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(field.default) is int and (field.default or value):  # 0 stands for "none" where it is the default
                check_count(f"{field.name} in the attack {self.name}", value)
            elif field.name == "loss":
                objective_named(value)

    @abstractmethod
    def __call__(
        self,
        net: Net,
        x: Images,
        y: Labels,
        threat: Threat,
        generator: torch.Generator | None = None,
        indices: Indices | None = None,
    ) -> Images:
        """Adversarial images like x, (B, ...); arguments as for `pgd`."""

    def settings(self, threat: Threat) -> dict[str, Any]:
        """What its function takes beside the data: fields by their names, those left out whose 0 stands for "none"."""
        return {name: value for name, (value, default) in self.parameters.items() if value or default}

    def bound(self, threat: Threat, seed: int) -> "Bound":
        """The attack on images alone, as `worst_case` takes it: its noise depends on the seed and an image's index."""
        return Bound(self, threat, seed)

    @property
    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """{name: (value, default)} in declared order."""
        return {field.name: (getattr(self, field.name), field.default) for field in fields(self)}

    def __str__(self) -> str:
        changed = {key: value for key, (value, default) in self.parameters.items() if value != default and key != self.count}
        number = getattr(self, self.count) if self.count else ""
        for word, settings in self.words.items():
            if changed == {key: value for key, value in settings.items() if value != self.parameters[key][1]}:
                return f"{self.name}{number}-{word}"
        return canonical(self.name, self.parameters) if changed else f"{self.name}{number}"


@dataclass(frozen=True)
class Bound:
    """An attack with its threat and the seed of its noise: (net, x, y, indices) -> images, the same at every call."""

    attack: Callable[[Net, Images, Labels, Threat, torch.Generator, Indices | None], Images]
    threat: Threat
    seed: int

    takes_indices: ClassVar[bool] = True

    def __call__(self, net: Net, x: Images, y: Labels, indices: Indices | None = None) -> Images:
        """Adversarial images like x."""
        return self.attack(net, x, y, self.threat, torch.Generator().manual_seed(self.seed), indices)


def by(function: Callable[..., Images]) -> Callable[..., Images]:
    """`Attack.__call__` by a function (net, x, y, threat, *, generator, indices) of the attack's settings."""

    def __call__(
        self: Attack,
        net: Net,
        x: Images,
        y: Labels,
        threat: Threat,
        generator: torch.Generator | None = None,
        indices: Indices | None = None,
    ) -> Images:
        return function(net, x, y, threat, generator=generator, indices=indices, **self.settings(threat))

    return __call__


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of the whole budget; see `fgsm`."""

    loss: str = "cross_entropy"

    name = "fgsm"
    __call__ = by(fgsm)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent; see `pgd`. relative_step: size of a step, in epsilon / steps. targets: 0 for none."""

    steps: int = 20
    loss: str = "cross_entropy"
    restarts: int = 1
    momentum: float = 0.0
    targets: int = 0
    relative_step: float = 2.5
    random_start: bool = True

    name, count = "pgd", "steps"
    words = {"margin": {"loss": "margin"}, "dlr": {"loss": "dlr"}, "momentum": {"momentum": 1.0}}
    __call__ = by(pgd)

    def settings(self, threat: Threat) -> dict[str, Any]:
        """See `Attack.settings`; steps are relative to the ball."""
        found = super().settings(threat)
        found["step_size"] = found.pop("relative_step") * threat.epsilon / self.steps
        return found


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD; see `apgd`. targets: 0 for none."""

    steps: int = 100
    loss: str = "cross_entropy"
    restarts: int = 1
    targets: int = 0

    name, count = "apgd", "steps"
    words = {"ce": {"loss": "cross_entropy"}, "dlr": {"loss": "dlr"}, "t": {"loss": "dlr", "targets": 9}}
    __call__ = by(apgd)


@dataclass(frozen=True)
class Square(Attack):
    """Random search by squares; see `square`."""

    queries: int = 1000

    name, count, follows_gradient = "square", "queries", False
    __call__ = by(square)


@dataclass(frozen=True)
class Noise(Attack):
    """The worst of several draws of noise; see `noise`."""

    draws: int = 100

    name, count, follows_gradient = "noise", "draws", False
    __call__ = by(noise)


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The reference implementation; see `autoattack`. Its noise knows no images."""

    version: str = "standard"

    name, package = "autoattack", ("pyautoattack", "autoattack")
    __call__ = by(autoattack)


TAKES = ("net", "x", "y", "threat", "generator", "indices")  # an attack, by these names


@dataclass(frozen=True)
class Brought(Attack):
    """An attack of a user's own, known by the spec that finds it again: a function of `TAKES`, or an `Attack`."""

    spec: str
    function: Callable[..., Images]

    name = "brought"

    @property
    def follows_gradient(self) -> bool:  # type: ignore[override] # of the function it says so, if anybody
        """Whether what it finds depends on the gradient in use: unless the function has an attribute that says otherwise."""
        return bool(getattr(self.function, "follows_gradient", True))

    def __call__(
        self,
        net: Net,
        x: Images,
        y: Labels,
        threat: Threat,
        generator: torch.Generator | None = None,
        indices: Indices | None = None,
    ) -> Images:
        """See `Attack`."""
        found = self.function(net=net, x=x, y=y, threat=threat, generator=generator, indices=indices)
        if not isinstance(found, torch.Tensor) or found.shape != x.shape:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise InputError(f"{self.spec} gave {what}; an attack returns images like x, here {tuple(x.shape)}")
        return found

    def __str__(self) -> str:
        return self.spec


def _brought(part: Own) -> Attack:
    """The attack of a user's own."""
    found = part.found
    if isinstance(found, type):  # a class of attacks
        declared = part.declared()
        function = part.call(**(settings := part.settings(declared)))
    elif callable(found):
        declared = {} if isinstance(found, Attack) else part.declared(TAKES)
        settings = part.settings(declared)
        function = partial(found, **settings) if settings else found
    if not callable(found) or not callable(function):
        raise InputError(f"{part.spec} is a {type(found).__name__}; an attack is an Attack or a function of {', '.join(TAKES)}")
    spec = canonical(part.spec, {key: (settings.get(key, default), default) for key, default in declared.items()})
    return Brought(spec, function)


ATTACKS: dict[str, Any] = {attack.name: attack for attack in (FGSM, PGD, APGD, Square, Noise, AutoAttack)}
_SHORTHAND = re.compile(r"(?P<name>[a-z]+)(?P<count>[1-9]\d*)?(-(?P<word>[a-z]+))?")


def list_attacks() -> list[str]:
    """The names of all attacks."""
    return [*ATTACKS]


def shorthands() -> list[str]:
    """How attacks can be named for short, N being a whole number: for help and messages."""
    return [
        f"{attack.name}{'N' * bool(attack.count)}{word}"
        for attack in ATTACKS.values()
        for word in ("", *(f"-{word}" for word in attack.words))
    ]


def get_attack(spec: str | Attack) -> Attack:
    """The attack that a spec or a shorthand names: "pgd(steps=20,loss=margin)", or for short "pgd20-margin".

    An `Attack` is returned as it is; "path/to/file.py:NAME" is one, a class of them, or a function (net, x, y, threat,
    generator, indices) -> images, called by these names.

    Raises:
        ValueError: Malformed or unknown name, unknown parameter, a value of the wrong type or out of range; `MissingExtra`
            where the package that it needs is not installed.
    """
    if isinstance(spec, Attack):
        return spec
    if is_own(spec):
        return _brought(find_own(spec, "attack"))
    attack: Attack
    short = _SHORTHAND.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if short and (kind := ATTACKS.get(short["name"])) and (kind.count or not short["count"]):
        settings = kind.words.get(short["word"]) if short["word"] else {}
        if settings is None:
            raise InputError(f"unknown attack {spec!r}; choose from {_choice()}")
        attack = kind(**settings, **({kind.count: int(short["count"])} if short["count"] else {}))
    elif isinstance(spec, str) and "(" in spec:
        name, arguments = read_name(spec, "attack", list_attacks(), {})
        declared = {field.name: field.default for field in fields(ATTACKS[name])}
        attack = ATTACKS[name](**read_arguments(spec, "attack", arguments, declared))
    else:
        raise InputError(f"unknown attack {spec!r}; choose from {_choice()}")
    if attack.package and find_spec(attack.package[0]) is None:
        raise MissingExtra(
            f'the attack {attack.name} needs the package {attack.package[0]}: pip install "odenets[{attack.package[1]}]"'
        )
    return attack


def _choice() -> str:
    return (
        f"{', '.join(shorthands())}, N being a number of steps, queries or draws, such as pgd20, or a spec such as "
        "pgd(steps=20,loss=margin)"
    )
