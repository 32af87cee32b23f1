"""The configuration of a run: everything that determines its results, and the incidental rest. JSON is its edge."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from experiments.harness.training.data import SPLIT_SEED
from experiments.harness.training.settings import TrainingSettings

CONFIG_VERSION = 4
# What may change between the start of a run and its resumption: nothing here moves a result.
INCIDENTAL = (
    "version",
    "command",
    "environment",
    "data_dir",
    "download",
    "workers",
    "checkpoint_seconds",
    "budget",
    "seeds_at_most",
    "reported",
    "log",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Of a run of cases.

    experiment: the script. schemes, fields: canonical specs. substeps: steps for each block. threat: the norm of the attacks,
    as the command line names it. epsilons: radii in pixel units. audit: which nets. budget: in seconds. data: {split: images}.
    splits: whether all seeds share their images, the split of `split_seed`. margin: of equivalence, a share of the images.
    looks: numbers of seeds after which a run that ends when it is clear is looked at; none: one look, at all seeds. Both are
    fixed before anything is seen. reported: numbers of seeds at which there was a report. reads: what a sweep of steps asks:
    `sweep_steps.READS`. own: {file: SHA-256} of a user's own code and images. environment: versions and machine. The rest is
    as its option says.
    """

    experiment: str
    schemes: tuple[str, ...]
    dataset: str
    model: str
    settings: TrainingSettings
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]
    epsilons: tuple[float, ...]
    substeps: tuple[int, ...] = (1,)
    fields: tuple[str, ...] = ("residual",)
    predictors: tuple[str, ...] = ()
    threat: str = "linf"
    audit: str = "all"
    audit_epsilon: float = 0.1
    audit_images: int = 64
    probe_images: int = 16
    data_dir: str = "data"
    download: bool = True
    train_limit: int | None = None
    test_limit: int | None = None
    image_size: int | None = None
    splits: str = "fixed"
    split_seed: int = SPLIT_SEED
    margin: float = 0.02
    looks: tuple[int, ...] = ()
    reported: tuple[int, ...] = ()
    reads: tuple[str, ...] = ()
    device: str = "cpu"
    workers: int | None = None
    budget: float | None = None
    seeds_at_most: int | None = None
    log: str | None = None
    smoke: bool = False
    data: Mapping[str, int] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    version: int = CONFIG_VERSION

    @property
    def parts(self) -> list[str]:
        """The specs of everything that may be a user's own."""
        return [*self.schemes, *self.fields, *self.attacks, *self.predictors, self.model, self.dataset]

    @property
    def resplit(self) -> int | None:
        """The number of training images where each seed draws its own split; None where all share their images."""
        return self.data.get("train") if self.splits == "per-seed" else None

    def split_of(self, seed: int) -> int:
        """The seed of the split that the nets of a seed see."""
        return seed if self.splits == "per-seed" else self.split_seed

    def to_json(self) -> dict:
        """A flat dict: the settings of training stand among the others."""
        own = asdict(self)
        settings = own.pop("settings")
        return {key: list(value) if isinstance(value, tuple) else value for key, value in (own | settings).items()}

    @classmethod
    def from_json(cls, entry: dict) -> "RunConfig":
        """A configuration of any version."""
        entry = migrated(entry)
        training = {f.name for f in fields(TrainingSettings)}
        own = {f.name for f in fields(cls)} - {"settings"}
        settings = TrainingSettings(**{key: value for key, value in entry.items() if key in training})
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key in own
        }
        return cls(settings=settings, **known)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Of an evaluation of networks.

    network: as it was named. weights: {name: SHA-256} of the networks. The rest as in `RunConfig`.
    """

    network: str
    weights: Mapping[str, str]
    dataset: str
    attacks: tuple[str, ...]
    epsilons: tuple[float, ...]
    threat: str
    audit: str
    audit_epsilon: float
    audit_images: int
    data: Mapping[str, int]
    own: Mapping[str, str] = field(default_factory=dict)
    data_dir: str = "data"
    download: bool = True
    test_limit: int | None = None
    image_size: int | None = None
    device: str = "cpu"
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    experiment: str = "evaluate"
    version: int = 1

    def as_run(self) -> RunConfig:
        """What a comparison asks of a run: networks that are given share their images, and are looked at once."""
        shared = {key: getattr(self, key) for key in ("experiment", "dataset", "attacks", "epsilons", "threat", "data")}
        return RunConfig(schemes=(), model=self.network, settings=TrainingSettings(), seeds=(0,), **shared)

    def to_json(self) -> dict:
        """A dict that JSON can write."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def migrated(entry: dict) -> dict:
    """A configuration of an earlier version as today's: what was not written then is said here, and nowhere else."""
    if entry.get("version", 1) >= CONFIG_VERSION or "schemes" not in entry:
        return entry
    substeps = entry.get("substeps", 1)
    # Before there was a choice the last epoch was the result, and attacks were held to the L-infinity ball.
    before = {"fields": ["residual"], "threat": "linf", "select": "last"}
    before |= {"reads": ["finer", "trained"]} if entry.get("experiment") == "sweep_steps" else {}
    return before | entry | {"version": CONFIG_VERSION, "substeps": [substeps] if isinstance(substeps, int) else substeps}
