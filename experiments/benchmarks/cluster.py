"""What Ray costs beside the work: tiny cases on two nodes of one core each, against two processes of the local pool.

Seconds of the clock, from when the first cases have ended, so that starting is left out: other work on the machine lengthens
both.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from experiments.benchmarks.timing import Row
from experiments.harness.run.case import Case, run_task
from experiments.harness.run.cluster import Cluster, Nodes
from experiments.harness.run.config import RunConfig
from experiments.harness.run.places import Place, Processes, Screen, drive
from experiments.harness.run.runner import do_on_node, supply_of
from experiments.harness.run.schedule import Level, Schedule
from experiments.harness.run.shelf import Disk
from experiments.harness.training.settings import TrainingSettings

CASES, WARM, NODES = 200, 8, 2
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def overhead(device: torch.device, smoke: bool) -> Iterator[Row]:
    """Seconds that a case takes longer on the cluster; it is trained, attacked and looked at, three tasks."""
    if find_spec("ray") is None:
        yield Row("Ray is not installed (extra cluster; then run.py --only cluster): skipped", None, None)
        return
    count = 4 if smoke else CASES
    config = RunConfig(
        experiment="bench",
        schemes=("explicit_euler",),
        dataset="digits",
        model="small",
        settings=TrainingSettings(epochs=1, batch_size=16),
        seeds=tuple(range(count + WARM)),
        attacks=("fgsm",),
        epsilons=(0.1,),
        train_limit=16,
        test_limit=8,
        audit="none",
    )
    with tempfile.TemporaryDirectory() as folder, Progress(disable=True) as progress:
        disk, screen = Disk(Path(folder)), Screen(progress)
        pool = _seconds(Processes(partial(run_task, config, disk), screen, NODES, ["cpu"]), config)
        (other := disk.folder / "ray").mkdir()  # or nets would go on from what the processes have saved
        ray = _on_ray(config, other, screen)
    yield Row(f"a tiny case on {NODES} processes, s", pool, None)
    yield Row(
        f"{count} tiny cases on {NODES} nodes of Ray: more for each than on {NODES} processes, s", max(0, ray - pool), 0.3
    )


def _on_ray(config: RunConfig, folder: Path, screen: Screen) -> float:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster as Nodes_

    cluster = Nodes_(True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            cluster.add_node(**NODE)
        there = Cluster(cluster.address)
        return _seconds(Nodes(partial(do_on_node, config), screen, there, folder, partial(supply_of, config)), config)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _seconds(place: Place, config: RunConfig) -> float:
    """Seconds of the clock for each case, but the first ones."""
    schedule, times = Schedule(Level("none", -1, stability=False)), []
    schedule.add(Case("explicit_euler", 1, seed) for seed in config.seeds)

    def ended(task: Any, found: dict[str, Any], failure: Any) -> None:
        if failure:
            raise RuntimeError(failure.sentence)
        schedule.ended(task, 0.0)
        if schedule.complete(task.case):
            times.append(time.perf_counter())

    drive(place, schedule.next, ended)
    return (times[-1] - times[WARM - 1]) / (len(times) - WARM)
