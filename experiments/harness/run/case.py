"""One case: a network trained with one scheme from one seed, and everything measured on it."""

import functools
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import odenets
from experiments.harness.run import checkpoints
from experiments.harness.run import measure as evaluation
from experiments.harness.run.config import INCIDENTAL
from experiments.harness.run.partials import Partials
from experiments.harness.run.schema import Record
from experiments.harness.training import data
from experiments.harness.training import loop as training
from stability.attacks.threats import THREATS


@dataclass(frozen=True)
class Case:
    """What distinguishes the cases of a run.

    scheme: canonical spec. substeps: steps for each block, in training and evaluation. seed: initial weights, batches, noise.
    rerun_with: other numbers of substeps with which the trained weights are evaluated again, without training.
    field: canonical spec of what is integrated.
    """

    scheme: str
    substeps: int
    seed: int
    rerun_with: tuple = ()
    field: str = "residual"

    @property
    def name(self):
        """A readable name that serves as a file name."""
        field = "" if self.field == "residual" else f"-{self.field}"
        name = f"{self.scheme}{field}-substeps{self.substeps}-seed{self.seed}"
        return name.replace("(", "_").replace(")", "").replace(",", "_")

    @property
    def key(self):
        """What distinguishes it; see `Record.key`."""
        return self.scheme, self.field, self.substeps, self.seed


@functools.lru_cache(maxsize=1)
def _load(*arguments):
    return data.load(*arguments)


def load_data(config):
    """The data of a run, read once for each process."""
    return _load(config.dataset, config.data_dir, config.download, config.train_limit, config.test_limit)


def run_case(config, folder, case, progress=lambda phase, done, total: None, say=lambda sentence: None):
    """Train and measure one case.

    Args:
        config: The run's `RunConfig`.
        folder: The run's folder; the weights go to its checkpoints/, and so does the state of the training, from which it
            goes on if it is there.
        case: Which scheme, substeps and seed.
        progress: Called with (what is being done, done, total).
        say: Called with a sentence that the user should read.

    Returns:
        A list of `Record`s: the case's own and one for each entry of `rerun_with`.
    """
    device = torch.device(config.device)
    images = load_data(config)
    split = data.Data(images.name, images.classes, *(part.to(device) for part in (images.train, images.held_out, images.test)))
    seconds = {}
    torch.manual_seed(case.seed)  # the initial weights: drawn on the CPU, so that every scheme and device gets the same
    shared = {
        "model": config.model,
        "scheme": case.scheme,
        "substeps": case.substeps,
        "field": case.field,
        "dataset": config.dataset,
        "seed": case.seed,
        "training": config.settings.training,
    }
    description = {**shared, "num_classes": split.classes, "in_channels": split.channels, "epochs": config.settings.epochs}
    net = checkpoints.build(description).to(device)
    settings = {key: value for key, value in asdict(config.settings).items() if key not in INCIDENTAL}
    identity = {**description, "train_limit": config.train_limit, **settings}
    store = Partials(Path(folder, "checkpoints"), case.name, identity, say)
    trained = training.train(net, split, config.settings, case.seed, store, functools.partial(progress, "training"), say)
    seconds["training"] = trained.seconds
    checkpoints.save(
        Path(folder, "checkpoints", case.name + ".pt"),
        {**description, "epoch": trained.epoch, "config": config.to_json(), "state_dict": net.state_dict()},
    )
    with _timed(seconds, "attacks"):
        measurements = _accuracy(net, split, config, case, functools.partial(progress, "attacks"))
    with _timed(seconds, "stability"):
        probe = split.test.images[: config.probe_images]
        metrics, cloud = evaluation.measure_stability(net, probe, progress=functools.partial(progress, "stability"))
        solver = evaluation.measure_solver(net, split.test)
        unsolved = evaluation.explain_unsolved(net, split.test)
    audit = None
    if config.audit == "all" or (config.audit == "first" and case.seed == config.seeds[0]):
        with _timed(seconds, "audit"):
            progress("audit", 0, 1)
            count = min(config.audit_images, len(split.test))
            audit = evaluation.measure_audit(net, split.test, config.audit_epsilon, count, THREATS[config.threat])
    record = Record(
        **shared,
        trained_substeps=case.substeps,
        trained_as=case.scheme,
        rerun_with=case.rerun_with,
        parameters=sum(p.numel() for p in net.parameters()),
        epoch=trained.epoch,
        history=trained.history,
        measurements=measurements,
        stability=metrics,
        cloud=cloud,
        solver=solver and replace(solver, **trained.unsolved),
        unsolved=unsolved,
        audit=audit,
        seconds={key: round(value, 2) for key, value in seconds.items()},
    )
    records = [record]
    for substeps in case.rerun_with:
        odenets.set_scheme(net, case.scheme, substeps=substeps)
        measurements = _accuracy(net, split, config, case, functools.partial(progress, f"attacks, {substeps} substeps"))
        records.append(
            replace(
                record,
                substeps=substeps,
                measurements=measurements,
                history=(),
                stability=(),
                cloud={},
                solver=evaluation.measure_solver(net, split.test),
                unsolved=None,
                audit=None,
                seconds={},
            )
        )
    return records


def _accuracy(net, split, config, case, progress):
    threat = THREATS[config.threat]
    return evaluation.measure_accuracy(net, split.test, config.attacks, config.epsilons, case.seed, progress, threat)


@contextmanager
def _timed(seconds, key):
    start = time.perf_counter()
    yield
    seconds[key] = time.perf_counter() - start
