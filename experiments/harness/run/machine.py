"""What fits this machine: how many workers its cores, its memory or its GPU carry, and an allocator that keeps its memory.

Asked of the system, not measured: a second of convolutions on a machine with other work said one worker for two cores, and
chose the slower size of the pieces of a batch three times of four.
"""

import ctypes
import functools
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# Of a process: torch and its libraries, a net's training and attacks. On a GPU beside its nets: the context, kernels, slack.
WORKER_BYTES, CONTEXT_BYTES = 3 * 2**29, 2**30
# The part of a process's time in which a GPU computes: kernels of small nets are shorter than their launches, and it idles.
BUSY = {"small": 0.15, "small-stride2": 0.25}
CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: of its affinity, and no more than a container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def available_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that is left, of the machine and of a container; None where the system does not say."""
    rows = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    found = [int(rows["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in rows else []
    limit, used = (_read(cgroup / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        found.append(int(limit) - int(used))
    return min(found, default=None)


def devices_of(device: torch.device) -> list[str]:
    """The devices that a run on `device` has: every GPU of the machine where none is named, as "cuda" does not."""
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(device)]


def default_workers(
    device: torch.device,
    model: str,
    free: Callable[[torch.device], int] | None = None,
    devices: Sequence[str] | None = None,
) -> int:
    """Single-threaded processes of a run that was told no number.

    Args:
        device: On a CPU one for each core, as far as memory goes. On GPUs one for each at least, and as many as their memory
            holds, the cores feed and their launches leave room for: one where a net keeps it busy.
        model: What is trained.
        free: Bytes that are free on a GPU; by default torch is asked.
        devices: What there is; by default `devices_of` is asked.
    """
    cores, memory = available_cores(), available_bytes()
    fitting = cores if memory is None else min(cores, memory // WORKER_BYTES)
    if device.type == "cuda":
        own = devices_of(device) if devices is None else devices
        room = min((free or _free)(torch.device(name)) for name in own) // (CONTEXT_BYTES + WORKER_BYTES)
        return max(len(own), min(fitting, len(own) * min(room, round(1 / BUSY.get(model, 1.0)))))
    return max(1, fitting)


def provenance_of(device: str) -> dict[str, Any]:
    """What a record says of this machine: {"node": its name, "device": "cpu" or a GPU's name, "versions": of packages}."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {"node": platform.node(), "device": name, "versions": versions()}


def provenance(device: str) -> dict[str, Any]:
    """What a run is made with: {"environment": versions and machine, "command": the line that started it}."""
    packages = ("odenets", "torch", "torchdiffeq", "torchvision", "numpy", "scipy")
    return {
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            **{name: version_of(name) for name in packages},
            "gpu": torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else None,
        },
        "command": shlex.join(_command()),
    }


def _command() -> list[str]:
    """The line that started this process: a script, or the command `odenets`."""
    script = Path(sys.argv[0])
    return ["odenets", *sys.argv[1:]] if script.stem == "odenets" else ["python", *sys.argv]


@functools.cache
def versions() -> dict[str, str]:
    """{package: version} of what results hang on."""
    packages = {name: version_of(name) for name in ("odenets", "numpy", "scipy")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}


def version_of(name: str) -> str:
    """The version of a package that is installed, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def keep_memory() -> bool:
    """Let glibc keep what is freed, in this process as its environment does in a worker; whether it could be told."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(-3, 2**30) and mallopt(-1, 2**31 - 1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
