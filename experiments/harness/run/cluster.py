"""Tasks on the nodes of a Ray cluster. Nothing of Ray is imported before somebody asks for one.

Nodes need no common disk and no data folder: the code and the images go out once, nets come back as bytes with what was found,
and the driver alone writes the run's folder, but for the partial checkpoints: those go through an actor on the driver's node,
so that a task whose node is lost goes on elsewhere from the last of them.
"""

import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.harness.command import parse_device, parse_one
from experiments.harness.run import own
from experiments.harness.run.failures import Failure, failure_of
from experiments.harness.run.machine import default_workers, keep_memory, versions
from experiments.harness.run.places import WORKER_ENVIRONMENT, Found, Screen, attempt
from experiments.harness.run.shelf import Disk
from experiments.harness.run.shelf import Found as Newest
from experiments.harness.training.epoch import Epoch
from odenets.errors import ROOT, InputError

RETRIES = 3  # of a task whose node or process was lost; nothing else is tried again
SECONDS = 0.5  # between two reports of a task, and two looks at the nodes
# Of Ray in this process, which else tries a task for ever that wants more memory, and prints its stack where it is ended, and
# what it does about processes that were lost.
RAY_ENVIRONMENT = {
    "RAY_task_oom_retries": str(RETRIES),
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # of HTTP/2, which Ray's head speaks

Supply = Callable[[Any], tuple[Hashable, Callable[[], Any]]]


@dataclass(frozen=True)
class Cluster:
    """address: "auto" or HOST:PORT. gpus: of each task, 0 for none."""

    address: str
    gpus: float = 0.0


def add_cluster_options(parser: ArgumentParser) -> None:
    """--cluster and --gpus-per-case."""
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run on a Ray cluster: auto for the one that this machine belongs to, or HOST:PORT of its head, such as "
        "10.0.0.1:6379; needs pip install 'odenets[cluster]'",
    )
    parser.add_argument(
        "--gpus-per-case",
        metavar="N",
        help="with --cluster, GPUs of each task, such as 1 or 0.25; default: 1 with --device cuda, else none",
    )


def parse_place(args: Namespace) -> tuple[str, Cluster | None]:
    """From --device, --cluster and --gpus-per-case: the device of the nets, and the `Cluster` they shall be on, if any."""
    if args.cluster is None:
        if args.gpus_per_case is not None:
            raise InputError(
                "--gpus-per-case needs --cluster; on one machine every GPU has a worker, and --workers shares them"
            )
        return str(parse_device(args.device)), None
    if args.cluster != "auto" and not re.fullmatch(r"[^:/\s]+:\d{1,5}", args.cluster):
        raise InputError(f"--cluster takes auto or HOST:PORT of the head, such as 10.0.0.1:6379, got {args.cluster!r}")
    if args.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"with --cluster, --device is auto, cpu or cuda, and Ray chooses which; got {args.device!r}")
    gpus = parse_one(args.gpus_per_case, "--gpus-per-case", float, 0)
    gpus = float(args.device == "cuda") if gpus is None else gpus
    if gpus > 1 and gpus % 1:
        raise InputError(f"--gpus-per-case is a share such as 0.25, or whole, got {args.gpus_per_case}")
    if gpus and args.device == "cpu" or not gpus and args.device == "cuda":
        raise InputError(f"--device {args.device} and --gpus-per-case {gpus:g} contradict each other; leave one out")
    return "cuda" if gpus else "cpu", Cluster(args.cluster, gpus)


def connect(cluster: Cluster) -> Any:
    """Ray, connected, once for each process.

    Raises:
        ValueError: Ray is not installed; no head there, or one of another version; no node has so many GPUs.
    """
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        import ray
    except ImportError:
        raise InputError("--cluster needs Ray, which is not installed here; pip install 'odenets[cluster]'") from None
    if not ray.is_initialized():
        if cluster.address != "auto" and "RAY_USE_TLS" not in os.environ:
            _knock(cluster.address)
        environment = {"py_modules": [str(ROOT / name) for name in own.OURS], "env_vars": WORKER_ENVIRONMENT}
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.CRITICAL, runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"no Ray cluster can be had at {cluster.address}: {told[:400] or type(error).__name__}") from None
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cluster.gpus > most:
        raise InputError(
            f"--gpus-per-case {cluster.gpus:g} can never be had: the most that a node of {cluster.address} has is {most:g}"
        )
    return ray


def workers_on(cluster: Cluster | None, workers: int | None, device: str, model: str) -> int:
    """Tasks at once: so many where that is said, on the nodes of a cluster no more than they carry for now."""
    if cluster is None:
        return workers or default_workers(torch.device(device), model)
    return min(workers or sys.maxsize, max(1, places_of(cluster)))


def places_of(cluster: Cluster) -> int:
    """Tasks that the nodes carry at once, for now."""
    return sum(room(node["Resources"], cluster.gpus) for node in connect(cluster).nodes() if node["Alive"])


def room(resources: Mapping[str, float], gpus: float) -> int:
    """Tasks of one core and so many GPUs that a node has room for."""
    cores, devices = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if not gpus:
        return cores
    return min(cores, int(devices // gpus) if gpus >= 1 else devices * int(1 / gpus + 1e-9))


def _knock(address: str) -> None:
    """Refuse an address at which nothing answers as Ray's head would: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(PREFACE)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"no Ray head answers at {address} ({told}); ray start --head prints the address of one") from None
    if answer[3:4] != b"\4":  # settings, which come first
        raise InputError(f"what answers at {address} is no Ray head; ray start --head prints the address of one")


@dataclass
class Afar:
    """A `Shelf` as a node sees it. disk: the actor, a `Disk` of the driver's node. nets: what was trained here."""

    disk: Any
    get: Callable[[Any], Any]
    say: Callable[[str], None]
    nets: dict[str, bytes] = field(default_factory=dict)

    def net(self, name: str) -> tuple[str, bytes]:
        """See `Shelf`."""
        return self.get(self.disk.net.remote(name))

    def put_net(self, name: str, data: bytes) -> None:
        """See `Shelf`: it goes back with what was found, since a node that is cut off may finish too."""
        self.nets[name] = data

    def newest(self, name: str) -> Newest:
        """See `Shelf`."""
        found = self.get(self.disk.newest.remote(name))
        if found.data is not None:
            self.say(f"goes on from {Path(found.path).name}")
        return found

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf`."""
        self.get(self.disk.put.remote(name, data))


class Nodes:
    """The nodes of a cluster, as a `Place`; those that join later too.

    Args:
        work: (shelf, task, progress, say, supply) -> what was found; pickled.
        screen: Bars and sentences.
        cluster: Where they are.
        folder: The run's checkpoints/.
        supply: task -> (key, load): what it needs beside; loaded here, and sent once for each key.
        codes: Of the user's own parts.
        workers: Tasks at once, at most.
    """

    def __init__(
        self,
        work: Callable,
        screen: Screen,
        cluster: Cluster,
        folder: Path,
        supply: Supply,
        codes: Sequence[own.Code] = (),
        workers: int | None = None,
    ) -> None:
        self.codes = codes
        self.work, self.screen, self.cluster, self.folder, self.supply = work, screen, cluster, folder.resolve(), supply
        self.workers = workers or sys.maxsize
        self.futures: dict[Any, Any] = {}
        self.supplies: dict[Hashable, Any] = {}
        self.nodes: dict[str, str] = {}
        self.looked, self.places, self.told = 0.0, 0, set[tuple]()

    def __enter__(self) -> "Nodes":
        self.ray = ray = connect(self.cluster)
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        pinned = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": RETRIES}
        self.disk = ray.remote(Disk).options(**pinned).remote(self.folder)
        self.updates = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.sent = ray.put(tuple(self.codes))
        _carry_own_modules(ray)
        self.remote = ray.remote(num_cpus=1, num_gpus=self.cluster.gpus, max_retries=RETRIES)(_on_node)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, self.ray.exceptions.RayError):
            self.ray.shutdown()
            told = f"the cluster at {self.cluster.address} is gone ({type(error).__name__}); what was written stays"
            raise ConnectionError(f"{told}, --resume goes on from there") from error
        for future in self.futures:
            self.ray.cancel(future, force=True)
        if error is None:
            self._show()
        self.futures.clear()
        self.supplies.clear()
        self.ray.kill(self.disk)
        self.updates.shutdown(force=True)

    def free(self) -> bool:
        """See `Place`."""
        if time.monotonic() - self.looked > SECONDS:
            self._look()
        return len(self.futures) < max(1, min(self.places, self.workers))  # nodes may yet come

    def submit(self, task: Any) -> None:
        """See `Place`."""
        key, load = self.supply(task)
        if key not in self.supplies:
            self.supplies[key] = self.ray.put(load())
        # In a list, or they would be fetched and unpacked again for every task.
        sent = [self.sent, self.supplies[key]]
        future = self.remote.options(name=task.name).remote(self.work, task, self.disk, self.updates, sent, versions())
        self.futures[future] = task

    def ended(self) -> list[tuple[Any, Found, Failure | None]]:
        """See `Place`."""
        done, _ = self.ray.wait(list(self.futures), timeout=0.2)
        if time.monotonic() - self.looked > SECONDS:
            self._look()
        outcomes = []
        for future in done:
            # Dropped once fetched: for a result that it still holds Ray would do the task again when a node is lost.
            task = self.futures.pop(future)
            self.screen.gone(task.name)
            outcomes.append((task, *self._fetched(future)))
        return outcomes

    def _fetched(self, future: Any) -> tuple[Found, Failure | None]:
        try:
            found, failure, nets = self.ray.get(future)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise error.cause from None
            return {}, failure_of(error.cause)
        except self.ray.exceptions.RayError as error:
            told = f"lost with its node or process, {RETRIES} times over ({type(error).__name__})"
            return {}, Failure(told, str(error))
        for name, data in nets.items():
            Disk(self.folder).put_net(name, data)
        return found, failure

    def _look(self) -> None:
        """See which nodes there are, and show what tasks have reported."""
        self._show()
        alive = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        names = {key: node_name(node["NodeManagerHostname"], key) for key, node in alive.items()}
        for key in self.nodes.keys() - names.keys():
            self.screen.say(f"Node {self.nodes[key]} is lost; its tasks go on elsewhere.")
        for key in names.keys() - self.nodes.keys() if self.nodes else ():
            self.screen.say(f"Node {names[key]} has joined.")
        self.nodes, self.looked = names, time.monotonic()
        self.places = sum(room(node["Resources"], self.cluster.gpus) for node in alive.values())

    def _show(self) -> None:
        for name, *update in self.updates.get_nowait_batch(self.updates.qsize()):
            if len(update) > 1 and name not in {task.name for task in self.futures.values()}:
                continue  # it came late
            if name is None and (told := tuple(update)) in self.told:
                continue
            if name is None:
                self.told.add(told)
                self.screen.say(*update)
            else:
                self.screen.show(name, *update)


def node_name(host: str, key: str) -> str:
    """The name of a node in records and sentences: a machine may be several."""
    return f"{host} ({key[:6]})"


def _on_node(
    work: Callable, task: Any, disk: Any, updates: Any, sent: list[Any], driver: Mapping[str, str]
) -> tuple[Found, Failure | None, dict[str, bytes]]:
    """Do a task on a node: what it found, its failure or None, and the nets that it has trained."""
    import ray

    context, last = ray.get_runtime_context(), 0.0
    name = node_name(socket.gethostname(), context.get_node_id())
    keep_memory()
    torch.set_num_threads(1)
    different = [
        f"{package} {own}, the driver {driver[package]}" for package, own in versions().items() if own != driver[package]
    ]
    if different:
        updates.put((None, f"Node {name} has {'; '.join(different)}: what it finds may differ from what the others find."))

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS:
            last = time.monotonic()
            updates.put((task.name, done, total))

    def say(told: str | Epoch) -> None:
        updates.put((task.whose, told if isinstance(told, Epoch) else f"{told} (on node {name})"))

    shelf = Afar(disk, ray.get, say)
    report(0, 1)
    found, failure = attempt(lambda *rest: work(shelf, *rest, _unpacked(sent[0], sent[1], ray.get)), task, report, say)
    if "made" in found:
        found["made"] = {**found["made"], "node": name}
    return found, failure, shelf.nets


_watched: list[Any] = []  # folders of this process, by the pipe that tells of its end
_held: dict[str, Any] = {}  # of a process on a node, for the tasks that follow: the last supply, and that code is there


def _unpacked(codes: Any, supply: Any, get: Callable[[Any], Any]) -> Any:
    """What a task needs, once the user's own code is there."""
    if codes.hex() not in _held and (code := get(codes)):
        own.unpack(code, _fleeting())
    if supply.hex() not in _held:
        _held.clear()
        _held[supply.hex()] = get(supply)
    _held[codes.hex()] = True
    return _held[supply.hex()]


def _fleeting() -> str:
    """A folder that goes when this process does, however that ends: Ray kills its workers."""
    folder = tempfile.mkdtemp(prefix="odenets")
    if os.name == "posix":
        # Ray kills children too, so that it is a grandchild that waits until nobody holds the pipe open any more.
        wait = 'exec 3<&0; (cat <&3 >/dev/null; rm -rf "$1") >/dev/null 2>&1 &'
        watch = subprocess.Popen(["sh", "-c", wait, "sh", folder], stdin=subprocess.PIPE, start_new_session=True)
        watch.wait()
        _watched.append(watch.stdin)
    return folder


def _carry_own_modules(ray: Any) -> None:
    """Let code that is neither ours nor Python's nor of an installed package travel with what is made of it."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and not own.installed(Path(file)):
            ray.cloudpickle.register_pickle_by_value(module)
