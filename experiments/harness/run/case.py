"""One case: a network trained with one scheme from one seed, and what is measured on it, phase by phase.

A phase takes nothing from the others but the trained net, which lies in a checkpoint: phases of one case may run at once, in
any process, and what a record lacks can be measured later.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import odenets
from experiments.harness.run import checkpoints, own
from experiments.harness.run import measure as evaluation
from experiments.harness.run.config import INCIDENTAL, RunConfig
from experiments.harness.run.machine import provenance_of
from experiments.harness.run.partials import Partials
from experiments.harness.run.schema import CHEAP, CHEAP_IMAGES, Record, made_of
from experiments.harness.run.shelf import Shelf
from experiments.harness.training import data
from experiments.harness.training import loop as training
from experiments.harness.training.epoch import Say
from experiments.harness.words import file_name
from odenets.errors import InputError
from stability.attacks.threats import THREATS
from stability.types import Progress


@dataclass(frozen=True)
class Case:
    """What distinguishes the cases of a run.

    scheme: canonical spec. substeps: steps for each block, in training and evaluation. seed: initial weights, batches, noise.
    rerun_with: other numbers of substeps with which the trained weights are evaluated again, without training.
    field: canonical spec of what is integrated. rerun_as: other schemes with which they are evaluated again.
    """

    scheme: str
    substeps: int
    seed: int
    rerun_with: tuple[int, ...] = ()
    field: str = "residual"
    rerun_as: tuple[str, ...] = ()

    @property
    def walks(self) -> tuple[tuple[str, int], ...]:
        """(scheme, substeps) that its weights are run with, a record each; first those of its training."""
        return (self.scheme, self.substeps), *self.reruns.values()

    @property
    def reruns(self) -> dict[str, tuple[str, int]]:
        """{phase: (scheme, substeps)} that its weights are run with beside those of its training."""
        finer = {f"{steps} steps": (self.scheme, steps) for steps in self.rerun_with}
        return finer | {f"as {scheme}": (scheme, self.substeps) for scheme in self.rerun_as}

    @property
    def name(self) -> str:
        """A readable name that serves as a file name."""
        field = "" if self.field == "residual" else f"-{self.field}"
        return file_name(f"{self.scheme}{field}-substeps{self.substeps}-seed{self.seed}")

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What distinguishes it; see `Record.key`."""
        return self.scheme, self.field, self.substeps, self.seed

    @property
    def kind(self) -> "Case":
        """The case without its seed: what takes the same time."""
        return replace(self, seed=0)

    @property
    def cost(self) -> float:
        """What its steps cost, roughly, for an order of work."""
        return odenets.get_scheme(self.scheme).cost * self.substeps


class Task(NamedTuple):
    """A phase of a case."""

    case: Case
    phase: str

    @property
    def name(self) -> str:
        """For bars."""
        return f"{self.case.name}: {self.phase}"

    @property
    def whose(self) -> str:
        """For sentences."""
        return self.case.name


class Work(NamedTuple):
    """A task, and what it is done with."""

    config: RunConfig
    shelf: Shelf
    case: Case
    images: data.Data
    progress: Progress
    say: Say

    @property
    def test(self) -> data.Split:
        """The test images, on the device of the run."""
        return self.images.test.to(torch.device(self.config.device))

    def net(self) -> nn.Module:
        """The trained net, on the device of the run."""
        path, content = self.shelf.net(self.case.name)
        return checkpoints.net_of(checkpoints.unpack(content, path), path, self.config.device)[0]


def checkpoint_of(folder: Path, case: Case) -> Path:
    """Where the trained net of a case lies."""
    return Path(folder, "checkpoints", case.name + ".pt")


@functools.lru_cache(maxsize=1)
def _load(*arguments: Any) -> data.Data:
    return data.load(*arguments)


def load_data(config: RunConfig, seed: int | None = None) -> data.Data:
    """The data of a run, read once for each process; of one of its seeds where each has a split of its own."""
    split = config.split_of(config.seeds[0] if seed is None else seed)
    limits = config.train_limit, config.test_limit
    found = _load(config.dataset, config.data_dir, config.download, *limits, split, config.image_size)
    if config.own.get(config.dataset, found.digest) != found.digest:
        raise InputError(f"{config.dataset} has changed since this run began; bring its images back, or start anew")
    return found


def run_task(
    config: RunConfig,
    shelf: Shelf,
    task: Task,
    progress: Progress = lambda done, total: None,
    say: Say = lambda sentence: None,
    images: data.Data | None = None,
) -> dict[str, Any]:
    """Do one phase of a case.

    Args:
        config: The run's `RunConfig`.
        shelf: Training puts the weights there, and so it does with its own state, from which it goes on if that is there. The
            other phases take the weights from there.
        task: The case and the phase, one of `PHASES` or of the case's reruns.
        progress: Called with (done, total).
        say: Called with a sentence that the user should read, and with each `Epoch` of a training.
        images: The data of the run; by default they are loaded.

    Returns:
        What the phase knows of the case's record, for `records_of`; under "seconds" its time, under "made" where and with what.
    """
    own.refuse_changes(config.own, config.parts, "this run began")
    start, images = time.perf_counter(), images or load_data(config, task.case.seed)
    work, walk = Work(config, shelf, task.case, images, progress, say), task.case.reruns.get(task.phase)
    found = _rerun(work, *walk) if walk else PHASES[task.phase](work)
    return {"seconds": round(time.perf_counter() - start, 2), "made": provenance_of(config.device), **found}


def _train(work: Work) -> dict[str, Any]:
    config, case, device = work.config, work.case, torch.device(work.config.device)
    split = work.images.to(device)
    torch.manual_seed(case.seed)  # the initial weights: drawn on the CPU, so that every scheme and device gets the same
    description = {
        **_described(config, case),
        "num_classes": split.classes,
        "in_channels": split.channels,
        "epochs": config.settings.epochs,
    }
    net = checkpoints.build(description).to(device)
    settings = {key: value for key, value in asdict(config.settings).items() if key not in INCIDENTAL}
    identity = {**description, "train_limit": config.train_limit, **settings}
    identity |= {"splits": config.splits} if config.resplit else {}
    store = Partials(work.shelf, case.name, identity, work.say)
    trained = training.train(net, split, config.settings, case.seed, store, work.progress, work.say)
    content = {**description, "epoch": trained.epoch, "config": config.to_json(), "state_dict": net.state_dict()}
    work.shelf.put_net(case.name, checkpoints.pack(content))
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "epoch": trained.epoch,
        "history": trained.history,
        "unsolved in training": trained.unsolved,
        "seconds": round(trained.seconds, 2),  # before a kill and after
    }


def _attack(work: Work) -> dict[str, Any]:
    return {"measurements": _accuracy(work, work.net())}


def _solve(work: Work) -> dict[str, Any]:
    net = work.net()
    return {"solver": evaluation.measure_solver(net, work.test), "unsolved": evaluation.explain_unsolved(net, work.test)}


def _stability(work: Work) -> dict[str, Any]:
    probe = work.test.images[: work.config.probe_images]
    metrics, cloud = evaluation.measure_stability(work.net(), probe, progress=work.progress, predictors=work.config.predictors)
    return {"stability": metrics, "cloud": cloud}


def _audit(work: Work) -> dict[str, Any]:
    count, threat = min(work.config.audit_images, len(work.test)), THREATS[work.config.threat]
    return {"audit": evaluation.measure_audit(work.net(), work.test, work.config.audit_epsilon, count, threat)}


def _check(work: Work) -> dict[str, Any]:
    count, threat = min(CHEAP_IMAGES, len(work.test)), THREATS[work.config.threat]
    return {"audit": evaluation.measure_audit(work.net(), work.test, work.config.audit_epsilon, count, threat, CHEAP)}


def _refine(work: Work) -> dict[str, Any]:
    return {"refinement": evaluation.measure_refinement(work.net(), work.test.images[: work.config.probe_images])}


def _rerun(work: Work, scheme: str, substeps: int) -> dict[str, Any]:
    """The same weights with another number of steps, or another scheme: what its record says."""
    odenets.set_scheme(net := work.net(), scheme, substeps=substeps)
    return {"measurements": _accuracy(work, net), "solver": evaluation.measure_solver(net, work.test)}


def _accuracy(work: Work, net: nn.Module) -> tuple:
    config, threat = work.config, THREATS[work.config.threat]
    return evaluation.measure_accuracy(net, work.test, config.attacks, config.epsilons, work.case.seed, work.progress, threat)


# In the order in which they run where one process does them all; the first makes what the others look at. "checks" are the
# cheap ones of the audit, for a net that is not audited whole. After them come the reruns of a case, a phase each.
TRAINING = "training"
PHASES: dict[str, Callable[[Work], dict[str, Any]]] = {
    TRAINING: _train,
    "attacks": _attack,
    "refinement": _refine,
    "solver": _solve,
    "stability": _stability,
    "checks": _check,
    "audit": _audit,
}


def phases_of(case: Case, audit: str | None, stability: bool = True) -> list[str]:
    """The phases that a case shall have; audit: "audit", "checks" or None."""
    wanted = {TRAINING, "attacks", "solver", audit, *(["stability"] * stability), *(["refinement"] * bool(case.rerun_with))}
    return [phase for phase in every_phase(case) if phase in wanted or phase in case.reruns]


def every_phase(case: Case) -> list[str]:
    """All phases that a case may have, in their order."""
    return [*PHASES, *case.reruns]


def phases_had(case: Case, record: Record) -> set[str]:
    """The phases that a case has which has this record."""
    known = {TRAINING, "attacks", "solver", "refinement", *case.reruns} | ({"stability"} & {*record.seconds})
    if record.audit:
        known |= {"checks"} if record.audit.extent == CHEAP else {"checks", "audit"}
    return known


def records_of(config: RunConfig, case: Case, found: dict[str, dict[str, Any]], before: Record | None = None) -> list[Record]:
    """The `Record`s of a case: its own, and one for each other entry of its `walks`.

    Args:
        config, case: What was run.
        found: {phase: what `run_task` returned}.
        before: The case's record where only what it lacked was run; the reruns are then not among the records returned.
    """
    found = {phase: found[phase] for phase in every_phase(case) if phase in found}  # a whole audit tells more than cheap checks
    fields = {key: value for phase, part in found.items() if phase not in case.reruns for key, value in part.items()}
    unsolved = fields.pop("unsolved in training", {})
    fields["made"] = made_of({phase: part["made"] for phase, part in found.items() if "made" in part}, before)
    fields["seconds"] = {phase: part["seconds"] for phase, part in found.items()}
    if before:
        return [replace(before, **fields | {"seconds": {**before.seconds, **fields["seconds"]}})]
    fields["solver"] = fields["solver"] and replace(fields["solver"], **unsolved)
    shared = {**_described(config, case), "trained_substeps": case.substeps, "trained_as": case.scheme}
    record = Record(**shared, rerun_with=case.rerun_with, **fields)
    rest: dict[str, Any] = {"history": (), "stability": (), "cloud": {}, "unsolved": None, "audit": None, "seconds": {}}
    rest["refinement"] = None
    others = []
    for phase, (scheme, steps) in case.reruns.items():
        measured = {key: found[phase][key] for key in ("measurements", "solver")}
        others.append(replace(record, scheme=scheme, substeps=steps, swapped=scheme != case.scheme, **rest, **measured))
    return [record, *others]


def _described(config: RunConfig, case: Case) -> dict[str, Any]:
    return {
        "model": config.model,
        "scheme": case.scheme,
        "substeps": case.substeps,
        "field": case.field,
        "dataset": config.dataset,
        "seed": case.seed,
        "training": config.settings.training,
    }
