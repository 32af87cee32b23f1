"""Runs on a real cluster of several nodes on this machine, which are killed and join in the middle."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.harness.run import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals")]
ROOT = Path(__file__).parents[2]
# A net of a few weights, whose training is long enough to be killed in, with a state after each batch.
NET = """
import odenets
from odenets.nets.layers import basic_layers


def tiny(num_classes, in_channels, scheme, substeps, field):
    return odenets.ODEResNet(basic_layers, (2,), (4,), num_classes, in_channels, scheme, substeps, field, stem_width=4)
"""
ARGUMENTS = (
    "--schemes explicit,heun --model net.py:tiny --seeds 0 --epsilons 0.1 --attacks pgd2 --epochs 12 --training pgd "
    "--train-steps 2 --train-limit 640 --test-limit 40 --audit none --no-download --checkpoint-seconds 0"
).split()
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# That a node is lost shall be noticed in seconds, and a busy machine shall not be taken for one.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


@pytest.fixture
def nodes():
    """A cluster whose head, the driver's node, has one core; nodes that are added have folders of their own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    folders, cluster = [], Cluster(True, head_node_args={**SMALL, "include_dashboard": False, "_system_config": QUICK})

    def add():
        folders.append(tempfile.mkdtemp(prefix="ray"))  # the path of a socket is short
        return cluster.add_node(**SMALL, temp_dir=folders[-1])

    cluster.add = add
    yield cluster
    cluster.shutdown()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def start(out, *options, script="compare_schemes", arguments=ARGUMENTS):
    """A run in a process of its own, whose folder is not that of the nodes: its own code is named from there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments, "--out", str(out), *options]
    with open(f"{out}.log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=Path(out).parent)


def finished(process, out, seconds=600):
    assert process.wait(seconds) == 0, Path(f"{out}.log").read_text()
    printed = Path(f"{out}.log").read_text()
    assert not re.search(r"^(\[20\d\d-|\*\*\*)|\(raylet\)|Warning|Traceback", printed, flags=re.M), printed  # of Ray's own
    return printed


def results(out):
    """{case: all that was found, without times and places}, and the weights; every case once."""
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    found = {(record["scheme"], record["seed"]): {**record, "seconds": None, "made": None} for record in records}
    assert len(found) == len(records)
    nets = {path.name: checkpoints.read(path)["state_dict"] for path in sorted((out / "checkpoints").iterdir())}
    return found, {name: {key: tensor.numpy().tobytes() for key, tensor in net.items()} for name, net in nets.items()}


def places(out):
    return [{made["node"] for made in json.loads(line)["made"]} for line in (out / "records.jsonl").read_text().splitlines()]


def until(process, condition, seconds=400):
    """Wait for what a run shall show while it goes on."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    return found


def partials(out, scheme):
    return sorted(path.name for path in out.glob(f"checkpoints/{scheme}*.partial"))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run on this machine alone."""
    out = tmp_path_factory.mktemp("local") / "run"
    (out.parent / "net.py").write_text(NET)
    finished(start(out, "--workers", "1"), out)
    return out


def raylet_of(node):
    return next(iter(node.all_processes["raylet"])).process.pid


def training_on(node, out):
    """The process that trains on a node, once it has saved two states; None before."""
    command = ["ps", "-o", "pid=,args=", "--ppid", str(raylet_of(node))]
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        found = re.fullmatch(r"\s*(\d+) ray::(.*): training\s*", line)
        if found and len(list(out.glob(f"checkpoints/{found[2]}.*.partial"))) > 1:
            return int(found[1])
    return None


def test_a_node_killed_in_mid_training_loses_no_more_than_a_batch(nodes, local, tmp_path):
    other, out = nodes.add(), tmp_path / "run"
    (tmp_path / "net.py").write_text(NET)
    process = start(out, "--cluster", nodes.address)
    worker = until(process, lambda: training_on(other, out))
    os.kill(raylet_of(other), signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    printed = finished(process, out)
    assert printed.count("is lost; its tasks go on elsewhere") == 1
    assert printed.count("goes on from") == 1
    assert results(out) == results(local)
    assert (out / "accuracy.csv").read_bytes() == (local / "accuracy.csv").read_bytes()


def test_the_driver_killed_goes_on_and_a_node_that_joins_late_gets_work(nodes, local, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "net.py").write_text(NET)
    process = start(out, "--cluster", nodes.address)
    until(process, lambda: len(partials(out, "heun")) > 1)
    process.kill()
    process.wait()
    process = start(out, "--cluster", nodes.address, "--resume")
    until(process, lambda: "goes on from" in Path(f"{out}.log").read_text())
    nodes.add()
    printed = finished(process, out)
    assert "has joined" in printed and results(out) == results(local)
    assert len(set.union(*places(out))) == 2


OWN = """
import odenets
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from helper import WIDTH

SCHEME = odenets.Tableau(
    "ralston", A=[[0, 0], [2 / 3, 0]], b=[1 / 4, 3 / 4], order=2, source="Ralston (1962)", r_polynomial=(1, 1, 0.5)
)


def net(num_classes, in_channels):
    found = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=num_classes)
    found.conv1 = nn.Conv2d(in_channels, WIDTH, 3, padding=1, bias=False)
    return found
"""


def test_parts_of_a_users_own_run_there_as_they_do_here(nodes, tmp_path):
    nodes.add()
    (tmp_path / "my.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("WIDTH = 64\n")
    generator = np.random.default_rng(0)
    for index in range(60):
        (folder := tmp_path / f"my_images/{'ab'[index % 2]}").mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 128, (12, 12, 3)) + 127 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    own = "--schemes explicit,my.py:SCHEME --model my.py:net --dataset my_images --epsilons 0.1 --audit none --smoke".split()
    outs = [tmp_path / "here", tmp_path / "there"]
    for out, option in zip(outs, (["--workers", "1"], ["--cluster", nodes.address])):
        finished(start(out, *option, arguments=own), out)
        assert (out / "report.html").stat().st_size > 10_000
    assert results(outs[0]) == results(outs[1])


def test_an_evaluation_on_two_nodes_says_what_a_local_one_says(nodes, local, tmp_path):
    """Own code travels too: a network that no other process could import."""
    nodes.add()
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text("WIDTH = 64\n")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nfrom helper import WIDTH\ntorch.manual_seed(0)\n"
        "class Net(nn.Sequential): pass\ndef net(): return Net(nn.Flatten(), nn.Linear(WIDTH, 10)).eval()\n"
    )
    for name in (str(local), "mine.py:net"):
        arguments = [name, "--dataset", "digits", "--attacks", "pgd2,square20", "--epsilons", "0.1", "--test-limit", "40"]
        outs = [tmp_path / f"{Path(name).stem}-{place}" for place in ("here", "there")]
        options = (["--device", "cpu"], ["--cluster", nodes.address])
        for out, option in zip(outs, options):
            finished(start(out, "--audit-images", "8", *option, script="evaluate", arguments=arguments), out)
        assert (outs[0] / "accuracy.csv").read_bytes() == (outs[1] / "accuracy.csv").read_bytes()
        assert len(set.union(*places(outs[1]))) == 2
