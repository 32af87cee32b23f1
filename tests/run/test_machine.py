"""What fits a machine, told by files and devices that are made up."""

import os
import sys

import pytest
import torch

from experiments.harness.run import machine

GIB = 2**30


def _container(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 16), ("", 16), ("rubbish", 16), ("9000000 100000", 16)],
)
def test_a_container_has_the_cores_of_its_share(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    assert machine.available_cores(_container(tmp_path, cpu_max=quota)) == cores


def test_without_files_the_cores_of_the_process_count(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(3), raising=False)
    assert machine.available_cores(tmp_path / "nowhere") == 3


def test_memory_of_the_machine_and_of_the_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       33554432 kB\nMemAvailable:   16777216 kB\n")
    assert machine.available_bytes(tmp_path, meminfo) == 16 * GIB
    _container(tmp_path, memory_max=str(8 * GIB), memory_current=str(3 * GIB))
    assert machine.available_bytes(tmp_path, meminfo) == 5 * GIB
    _container(tmp_path, memory_max="max")
    assert machine.available_bytes(tmp_path, meminfo) == 16 * GIB
    assert machine.available_bytes(tmp_path / "nowhere", tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("device", "model", "cores", "memory", "on_device", "workers"),
    [
        ("cpu", "small", 4, 64 * GIB, 0, 4),
        ("cpu", "small", 64, 16 * GIB, 0, 10),  # each process brings torch along
        ("cpu", "resnet18", 2, GIB, 0, 1),
        ("cpu", "small", 2, None, 0, 2),
        ("cuda", "small", 16, 128 * GIB, 78 * GIB, 7),
        ("cuda", "small", 2, 128 * GIB, 78 * GIB, 2),  # a core for each process, which launches
        ("cuda", "small", 16, 128 * GIB, 6 * GIB, 2),
        ("cuda", "small-stride2", 16, 128 * GIB, 78 * GIB, 4),
        ("cuda", "resnet18", 16, 128 * GIB, 78 * GIB, 1),  # it keeps a GPU busy
        ("cuda", "small", 16, 128 * GIB, GIB // 2, 1),
        ("cuda:0 cuda:1 cuda:2 cuda:3", "resnet18", 16, 128 * GIB, 78 * GIB, 4),
        ("cuda:0 cuda:1", "small", 16, 128 * GIB, 78 * GIB, 14),
        ("cuda:0 cuda:1", "small", 8, 128 * GIB, 78 * GIB, 8),
        ("cuda:0 cuda:1 cuda:2", "small", 2, 128 * GIB, 78 * GIB, 3),  # one for each, whatever the cores
    ],
)
def test_workers_that_fit(device, model, cores, memory, on_device, workers, monkeypatch):
    """GPUs of which only the names and the free memory are known."""
    devices = device.split()
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    monkeypatch.setattr(machine, "available_bytes", lambda: memory)
    assert machine.default_workers(torch.device(devices[0]), model, lambda device: on_device, devices) == workers


def test_a_machine_with_several_gpus_has_them_all(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = {name: machine.devices_of(torch.device(name)) for name in ("cpu", "cuda", "cuda:1")}
    assert found == {"cpu": ["cpu"], "cuda": ["cuda:0", "cuda:1", "cuda:2"], "cuda:1": ["cuda:1"]}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_allocator_can_be_told():
    assert machine.keep_memory() in (True, False)
