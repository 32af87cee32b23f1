"""Runs killed with SIGKILL or out of disk in the middle of training: --resume makes of them what would have come anyway."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch

from experiments import compare_schemes, sweep_steps
from experiments.harness.run import checkpoints, kept
from experiments.harness.run import measure as evaluation
from experiments.harness.run.schema import AuditResult, CheckResult, Measurement, Metric

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
ARGUMENTS = [
    "--schemes",
    "explicit,ie_skip(gamma=0.05)",
    "--seeds",
    "0",
    "--epsilons",
    "0.1",
    "--attacks",
    "pgd2",
    "--epochs",
    "2",
    "--training",
    "pgd",
    "--train-steps",
    "2",
    "--augment",
    "standard",
    "--train-limit",
    "320",
    "--test-limit",
    "40",
    "--workers",
    "1",
    "--resume",
    "--checkpoint-seconds",
    "0",
]


def conduct(out, log=None):
    """A run in a process of its own; stability and audit, which come after training and are not at stake, are left out."""
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    evaluation.measure_stability = lambda *arguments, **settings: ([], {})
    evaluation.measure_audit = lambda *arguments, **settings: None
    compare_schemes.main([*ARGUMENTS, "--out", str(out)])


@pytest.fixture(scope="module")
def context():
    """Processes that start at once: a server imports torch, each process is a copy of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.compare_schemes", "experiments.harness.report"])
    return context


@pytest.fixture(scope="module")
def whole(context, tmp_path_factory):
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = context.Process(target=conduct, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return out


def results(out):
    """Everything that training and attacks have made, without times."""
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    nets = [checkpoints.read(path) for path in sorted((out / "checkpoints").glob("*.pt"))]
    weights = [b"".join(tensor.numpy().tobytes() for tensor in net["state_dict"].values()) for net in nets]
    return (
        (out / "accuracy.csv").read_bytes(),
        [record["history"] for record in records],
        weights,
        [{**record, "seconds": None} for record in records],
    )


def start_and_kill(context, out, delay, log, states=1):
    """Kill a run `delay` seconds after it has saved that many more states; its exit code."""
    process = context.Process(target=conduct, args=(out, log))
    process.start()
    before, seen = newest(out), set()
    while process.is_alive() and len(seen) < states:
        time.sleep(0.002)
        seen |= {newest(out)} - {before}
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def conduct_noting(main, arguments, log, killed_in=None):
    """A run that notes the phases it begins, and is killed when it begins one; dynamics and audit are made up."""
    from experiments.harness.run import runner

    def noted(config, disk, task, *rest, run_task=runner.run_task):
        with open(log, "a") as file:
            file.write(f"{task.case.scheme.split('(')[0]} {task.phase}\n")
        if task.phase == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_task(config, disk, task, *rest)

    torch.set_num_threads(1)
    evaluation.measure_stability = lambda *arguments, **settings: ((Metric(0, 1, "mu", 0.5),), {"0": [[0.5, 1.0]]})
    evaluation.measure_audit = lambda *arguments, **settings: AuditResult(True, 3, 0.1, (CheckResult("c", True, "r", {}, {}),))
    runner.run_task = noted
    main(arguments)


def phases_begun(context, tmp_path, main, arguments, *killed_in):
    """A run killed in these phases, one after the other, and gone on with, then one that nothing interrupts: their folders, and
    for each start the phases that it began, as (scheme, phase)."""
    run, whole, begun = tmp_path / "run", tmp_path / "whole", []
    for number, (out, kill) in enumerate([*((run, phase) for phase in killed_in), (run, None), (whole, None)]):
        log = tmp_path / str(number)
        process = context.Process(target=conduct_noting, args=(main, [*arguments, "--out", str(out)], log, kill))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill else 0)
        begun.append([line.split(maxsplit=1) for line in log.read_text().splitlines()])
    return run, whole, begun


def test_phases_that_had_ended_are_not_done_again(context, tmp_path):
    out, whole, begun = phases_begun(context, tmp_path, compare_schemes.main, ARGUMENTS, "stability", "audit")
    first, second, third, once = begun
    mine, *_ = first[0]
    phases = [phase for scheme, phase in once if scheme == mine]
    assert phases == ["training", "attacks", "solver", "stability", "audit"]
    assert [phase for _, phase in first] == phases[:4] and second == [[mine, "stability"], [mine, "audit"]]
    assert [phase for scheme, phase in third if scheme == mine] == ["audit"]
    assert [phase for scheme, phase in third if scheme != mine] == phases
    assert results(out) == results(whole) and (out / "audit.csv").read_bytes() == (whole / "audit.csv").read_bytes()
    assert [path.suffix for path in (out / "checkpoints").iterdir()] == [".pt", ".pt"]


def test_each_way_to_run_a_net_is_kept_for_itself(context, tmp_path):
    arguments = [*ARGUMENTS[2:], "--schemes", "explicit,heun", "--substeps", "1,2,4", "--audit", "none"]
    out, whole, begun = phases_begun(context, tmp_path, sweep_steps.main, arguments, "4 steps", "as explicit_euler")
    first, second, third, once = begun
    phases = ["training", "attacks", "refinement", "solver", "stability", "2 steps", "4 steps", "as explicit_euler"]
    assert first == [["heun", phase] for phase in phases[:-1]], "the dear net first"
    assert second == [["heun", phase] for phase in phases[-2:]]
    assert third == [["heun", phases[-1]], *(["explicit_euler", phase] for phase in [*phases[:-1], "as heun"])]
    assert once == [*(["heun", phase] for phase in phases), *third[1:]]
    assert results(out) == results(whole) and len(results(out)[1]) == 8, "two nets, run in four ways each"
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in ("steps.csv", "convergence.csv"))
    assert [path.suffix for path in (out / "checkpoints").iterdir()] == [".pt", ".pt"]


def test_what_was_found_on_another_net_is_found_again(tmp_path):
    found = {"seconds": 1.0, "measurements": (Measurement("clean", 0.0, "exact", 1, 1, 0, "80"),), "solver": None}
    (tmp_path / "net.pt").write_bytes(bytes(40))
    kept.save(tmp_path, "net", "2 steps", found)
    kept.save(tmp_path, "other", "2 steps", found)  # of a net that is not there
    assert kept.load(tmp_path, "net", ["attacks", "2 steps"]) == {"2 steps": found}
    (tmp_path / "net.attacks.found.json").write_text("{")
    assert kept.load(tmp_path, "net", ["attacks", "2 steps"]) == {"2 steps": found}
    path = tmp_path / "net.2 steps.found.json"
    of_before = json.loads(path.read_text())
    path.write_text(json.dumps(of_before | {"found": of_before["found"] | {"again": []}}))
    assert kept.load(tmp_path, "net", ["2 steps"]) == {"2 steps": found}, "as an earlier version wrote it"
    (tmp_path / "net.pt").write_bytes(bytes([1] * 40))
    assert kept.load(tmp_path, "net", ["attacks", "2 steps"]) == {}
    kept.remove(tmp_path, "net", ["attacks", "2 steps"])
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def newest(out):
    return max((path.name for path in out.glob("checkpoints/*.partial")), default="")


def test_killed_again_and_again_the_results_are_the_same_byte_for_byte(context, whole, tmp_path):
    out, seed = tmp_path / "run", random.randrange(10**6)
    delays, kills = random.Random(seed), 0
    while kills < 6 and start_and_kill(context, out, delays.uniform(0, 0.2), tmp_path / "log") == -signal.SIGKILL:
        kills += 1
    process = context.Process(target=conduct, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == 0 and kills >= 2, f"{kills} kills, seed {seed}"
    assert results(out) == results(whole), f"seed {seed}"
    assert [path.suffix for path in (out / "checkpoints").iterdir()] == [".pt", ".pt"], "what was kept meanwhile is gone"


def test_a_full_disk_ends_the_run_with_a_sentence_and_loses_nothing(whole, tmp_path, monkeypatch, capsys):
    out, save, count = tmp_path / "run", checkpoints.os.fsync, []

    def fsync(descriptor):
        count.append(descriptor)
        if len(count) > 20:  # two for each checkpoint: of the file, of its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        save(descriptor)

    for name in ("measure_stability", "measure_audit"):
        monkeypatch.setattr(evaluation, name, getattr(evaluation, name))  # which `conduct` replaces
    with monkeypatch.context() as full:
        full.setattr(checkpoints.os, "fsync", fsync)
        with pytest.raises(SystemExit) as stopped:
            conduct(out)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert "cannot save" in error and "00000011.partial (No space left on device)" in error and "--resume goes on" in error
    assert sorted(path.name[-16:] for path in (out / "checkpoints").iterdir()) == ["00000009.partial", "00000010.partial"]
    conduct(out)
    assert results(out) == results(whole)


@pytest.mark.parametrize("damage", ["newest", "both"])
def test_a_damaged_checkpoint_is_named_and_set_aside(damage, context, whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole, out)
    for path in [out / "records.jsonl", out / "accuracy.csv", *(out / "checkpoints").iterdir()]:
        path.unlink()
    assert start_and_kill(context, out, 0, log, states=3) == -signal.SIGKILL
    partial = sorted((out / "checkpoints").glob("*.partial"))
    assert len(partial) in (2, 3), "the last two, and the one that a kill left no time to drop"
    broken = partial[-1:] if damage == "newest" else partial
    for path in broken:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    process = context.Process(target=conduct, args=(out, log))
    process.start()
    process.join()
    assert process.exitcode == 0 and results(out) == results(whole)
    printed = log.read_text()
    for path in broken:
        assert f"{path.name} is damaged: its checksum does not match; set aside as {path.stem}.damaged" in printed
        assert path.with_suffix(".damaged").exists()
