"""What a run tells beside its bars, live: TensorBoard, a curve for each training (extra log)."""

import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.harness.run.schema import Record
from experiments.harness.training.epoch import Epoch
from experiments.harness.words import radius
from odenets.errors import MissingExtra

LOGS = ("tensorboard",)


def check_log(name: str) -> None:
    """`MissingExtra` where the package of a log is not installed."""
    if find_spec(name) is None:
        raise MissingExtra(f'--log {name} needs the package {name}: pip install "odenets[log]"')


class TensorBoard:
    """Writes below a folder, a run of TensorBoard's for each case: `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.writers: dict[str, Any] = {}

    def epoch(self, name: str, epoch: Epoch) -> None:
        """An epoch of a case's training has ended."""
        for key, value in asdict(epoch).items():
            if key not in ("epoch", "chosen") and value is not None:
                self._write(name, f"training/{key}", float(value), epoch.epoch)

    def measured(self, name: str, record: Record) -> None:
        """A case is complete."""
        for m in record.measurements:
            at = f" at {radius(m.epsilon)}" if m.epsilon else ""
            self._write(name, f"accuracy/{m.attack}{at}, {m.gradient}", m.accuracy, record.epoch or 0)

    def close(self) -> None:
        """Write what is left."""
        for writer in self.writers.values():
            writer.close()

    def _write(self, name: str, key: str, value: float, step: int) -> None:
        if name not in self.writers:
            with warnings.catch_warnings():  # of the packages behind it
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard.writer import SummaryWriter

            self.writers[name] = SummaryWriter(str(self.folder / name))
        self.writers[name].add_scalar(key, value, step)
        self.writers[name].flush()
