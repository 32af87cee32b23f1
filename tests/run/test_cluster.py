"""What can be said of a cluster without starting one."""

import io
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray import cloudpickle

from experiments import compare_schemes, evaluate, relate, reproduce_ie_skips, sweep_steps
from experiments.harness.command import Parser
from experiments.harness.options import add_arguments
from experiments.harness.run import cluster, machine
from experiments.harness.run.case import Case, Task
from experiments.harness.run.cluster import Cluster, add_cluster_options, parse_place, room
from experiments.harness.training import data
from odenets.errors import InputError

ROOT = Path(__file__).parents[2]


def test_without_a_cluster_nothing_of_ray_is_imported():
    scripts = "compare_schemes, sweep_steps, relate, reproduce_ie_skips, evaluate"
    line = (
        f"from experiments import {scripts}; import sys; print([name for name in sys.modules if name.split('.')[0] == 'ray'])"
    )
    assert subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ([], ("cpu", None)),
        (["--cluster", "auto"], ("cpu", Cluster("auto", 0.0))),
        (["--cluster", "10.0.0.1:6379", "--gpus-per-case", "0.25"], ("cuda", Cluster("10.0.0.1:6379", 0.25))),
        (["--cluster", "auto", "--device", "cuda"], ("cuda", Cluster("auto", 1.0))),
        (["--cluster", "auto", "--device", "cpu", "--gpus-per-case", "0"], ("cpu", Cluster("auto", 0.0))),
    ],
)
def test_where_the_nets_shall_be(options, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_place(_parsed(*options)) == place


def _parsed(*options):
    parser = Parser("test")
    parser.add_argument("--device", default="auto")
    add_cluster_options(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gpus-per-case", "1"], "--gpus-per-case needs --cluster"),
        (["--cluster", "ray://head"], "--cluster takes auto or HOST:PORT of the head, such as 10.0.0.1:6379, got 'ray://head'"),
        (["--cluster", ""], "--cluster takes auto or HOST:PORT"),
        (["--cluster", "auto", "--device", "cuda:1"], "Ray chooses which; got 'cuda:1'"),
        (["--cluster", "auto", "--gpus-per-case", "1.5"], "a share such as 0.25, or whole, got 1.5"),
        (["--cluster", "auto", "--gpus-per-case", "-1"], "--gpus-per-case must be finite and at least 0"),
        (["--cluster", "auto", "--gpus-per-case", "1", "--device", "cpu"], "--device cpu and --gpus-per-case 1 contradict"),
        (["--cluster", "auto", "--gpus-per-case", "0", "--device", "cuda"], "--device cuda and --gpus-per-case 0 contradict"),
        (["--cluster", "127.0.0.1:1"], "no Ray head answers at 127.0.0.1:1 (Connection refused); ray start --head"),
        (["--cluster", "127.0.0.1:99999"], "no Ray head answers at 127.0.0.1:99999"),
    ],
)
@pytest.mark.parametrize("script", [compare_schemes, sweep_steps, reproduce_ie_skips, relate, evaluate])
def test_bad_places_are_one_sentence_and_leave_nothing(options, sentence, script, tmp_path, capsys):
    network = {evaluate: ["nowhere"], relate: ["--schemes", "all"]}.get(script, [])
    with pytest.raises(SystemExit) as stopped:
        script.main([*network, "--out", str(tmp_path / "run"), *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray, which is not installed here; pip install 'odenets\[cluster\]'"):
        cluster.connect(Cluster("auto"))


def test_what_answers_at_the_address_must_speak_as_a_head_does():
    """A server of something else is refused at once; Ray itself would try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(99)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(InputError, match="is no Ray head"):
            cluster.connect(Cluster(f"127.0.0.1:{server.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.1",
            "with: Ray: 2.9.0 Python: 3.10.1",
        ),
        ("", "at auto: RuntimeError"),
    ],
)
def test_what_ray_says_of_a_head_that_does_not_fit_is_one_sentence(message, told, monkeypatch):
    def init(*arguments, **settings):
        raise RuntimeError(message)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match="no Ray cluster can be had at auto: ") as raised:
        cluster.connect(Cluster("auto"))
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_more_gpus_than_any_node_has_are_refused_at_once(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster.places_of(Cluster("auto", 4.0)) == 1 and cluster.places_of(Cluster("auto", 0.5)) == 8
    with pytest.raises(InputError, match="--gpus-per-case 8 can never be had: the most that a node of auto has is 4"):
        cluster.connect(Cluster("auto", 8.0))


@pytest.mark.parametrize(
    ("cores", "devices", "gpus", "tasks"),
    [
        (16, 0, 0, 16),
        (16, 4, 1, 4),
        (16, 4, 2, 2),
        (16, 4, 3, 1),
        (2, 4, 1, 2),
        (16, 2, 0.25, 8),
        (16, 2, 0.3, 6),
        (16, 0, 1, 0),
    ],
)
def test_tasks_that_a_node_has_room_for(cores, devices, gpus, tasks):
    assert room({"CPU": float(cores), "GPU": float(devices)}, gpus) == tasks
    assert room({}, gpus) == 0


class Reference:
    """Of what lies in Ray's store."""

    def __init__(self, value):
        self.value = value

    def hex(self):
        return str(id(self))


def test_a_node_with_another_torch_is_named_and_says_where_it_is(monkeypatch):
    updates, said = queue.Queue(), []
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "abcdef0123"))
    monkeypatch.setattr(ray, "get", lambda reference: reference.value)
    monkeypatch.setattr(torch, "set_num_threads", said.append)

    def work(shelf, task, progress, say, supply):
        say(f"has {supply}")
        shelf.put_net("net", b"weights")
        return {"made": machine.provenance_of("cpu")}

    task = Task(Case("explicit_euler", 1, 0), "training")
    sent = [Reference(()), Reference("images")]
    driver = {**machine.versions(), "torch": "1.0"}
    found, failure, nets = cluster._on_node(work, task, None, updates, sent, driver)
    assert failure is None and nets == {"net": b"weights"} and said == [1]
    node = f"{socket.gethostname()} (abcdef)"
    assert found["made"] == {**machine.provenance_of("cpu"), "node": node}
    assert updates.get() == (None, f"Node {node} has torch {torch.__version__}, the driver 1.0: what it finds may differ "
                             "from what the others find.")  # fmt: skip
    assert updates.get() == (task.name, 0, 1) and updates.get() == (task.case.name, f"has images (on node {node})")


def test_the_recipe_for_slurm_is_a_shell_script():
    """Its syntax; it has not been on a queue."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    script = text.split("```bash\n")[1].split("```")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert "never on a real queue" in " ".join(text.split())
    (line,) = (line for line in script.replace("\\\n", " ").splitlines() if "compare_schemes.py" in line)
    options = line.split("compare_schemes.py")[1].replace("$first:$port", "head:1").replace('"', "").split()
    parser = Parser("test")
    add_arguments(parser)
    assert parse_place(parser.parse_args(options)) == ("cuda", Cluster("head:1", 1.0))


@pytest.mark.parametrize(("scale", "ratio"), [(255, 0.3), (16, 0.3), (7, 1.1)])
def test_images_travel_as_bytes_and_arrive_to_the_last_bit(scale, ratio):
    images = torch.randint(scale + 1, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() / scale
    split = data.Split(images, torch.arange(50))
    packed = cloudpickle.dumps(split)
    back = cloudpickle.load(io.BytesIO(packed))
    assert torch.equal(back.images, images) and torch.equal(back.labels, split.labels)
    assert len(packed) < ratio * images.numel() * 4


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_code_that_was_carried_to_a_node_goes_with_the_process_that_had_it():
    line = (
        "import os, time; from pathlib import Path; from experiments.harness.run.cluster import _fleeting; "
        "folder = _fleeting(); Path(folder, 'my.py').write_text(''); print(folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", line], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    time.sleep(0.5)
    assert (folder / "my.py").exists()
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert folder.name.startswith("odenets") and not folder.exists()


def test_ray_is_told_to_keep_its_own_lines_to_itself(monkeypatch):
    for name in cluster.RAY_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    seen = {}
    monkeypatch.setattr(cluster, "_knock", lambda address: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda address, **settings: seen.update(settings, environment={**os.environ}))
    monkeypatch.setattr(ray, "nodes", list)
    cluster.connect(Cluster("head:1"))
    assert cluster.RAY_ENVIRONMENT.items() <= seen["environment"].items()
    assert not seen["log_to_driver"] and seen["logging_level"] > logging.ERROR
