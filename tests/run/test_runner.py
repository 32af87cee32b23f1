"""Running cases in this process and in others: failures leave the rest, and nothing outlives its parent."""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from records import config, verdict
from rich.console import Console

from experiments.harness import conduct
from experiments.harness.run import places, runner
from experiments.harness.run.budget import Budget
from experiments.harness.run.case import Case
from experiments.harness.run.failures import failure_of
from experiments.harness.run.folder import Run
from experiments.harness.run.schedule import in_order
from odenets.errors import Divergence, InputError, Unsolved

ROOT = Path(__file__).parents[2]
# What the phases of a case find, nothing in particular.
FOUND = {
    "training": {"seconds": 4.0, "parameters": 1, "epoch": 1, "history": (), "unsolved in training": {}},
    "attacks": {"seconds": 3.0, "measurements": ()},
    "solver": {"seconds": 2.0, "solver": None, "unsolved": None},
    "stability": {"seconds": 1.0, "stability": (), "cloud": {}},
    "audit": {"seconds": 9.0, "audit": verdict()},
    "checks": {"seconds": 1.0, "audit": replace(verdict(), extent="cheap")},
}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("unsolved\nby far"), "unsolved"),
        (Unsolved("unsolved"), "unsolved"),
        (Divergence("diverged"), "diverged"),
        (AssertionError("underflow"), "AssertionError at HERE: underflow"),
        (ZeroDivisionError(), "ZeroDivisionError at HERE"),
        (ValueError("shapes"), "ValueError at HERE: shapes"),
        (KeyError("key"), "KeyError at HERE: 'key'"),
    ],
)
def test_a_case_that_fails_leaves_the_others_and_its_sentence(error, sentence, tmp_path, monkeypatch, capsys):
    def run_task(config, folder, task, progress, say):
        if task.case.seed == 0:
            raise error
        return FOUND[task.phase]

    monkeypatch.setattr(runner, "run_task", run_task)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {})
    trace = run.path("failures", f"{cases[0].name}.txt")
    sentence = sentence.replace("HERE", f"{__file__}:{run_task.__code__.co_firstlineno + 2}")
    expected = sentence if isinstance(error, InputError | Unsolved) else f"{sentence} (traceback: {trace})"
    assert runner.run_cases(run, config(), cases, console, workers=1) == {cases[0].name: expected}
    assert [record.key for record in run.records] == [
        cases[1].key
    ] and f"{cases[0].name}: failed: {expected}" in capsys.readouterr().out
    assert trace.exists() == (expected != sentence)
    if trace.exists():
        assert "in run_task\n    raise error" in trace.read_text() and type(error).__name__ in trace.read_text()
    # It succeeds when tried again, and what was kept of the failure is gone.
    monkeypatch.setattr(runner, "run_task", lambda config, folder, task, progress, say: FOUND[task.phase])
    assert runner.run_cases(run, config(), cases, console, workers=1) == {} and not trace.parent.exists()


def test_a_full_disk_is_no_matter_of_one_case(tmp_path, monkeypatch):
    def run_task(*arguments):
        raise OSError("cannot save x (No space left on device)")

    monkeypatch.setattr(runner, "run_task", run_task)
    with pytest.raises(OSError, match="No space left"):
        runner.run_cases(
            Run(tmp_path / "run", {}), config(), [Case("explicit_euler", 1, 0)], runner.Progress().console, workers=1
        )


class Stubborn(Exception):
    """An exception that pickle cannot bring back: its constructor wants more than its message."""

    def __init__(self, one, other):
        super().__init__(one)


def _raise(task, *rest):
    raise Stubborn(task.case.name, 1) if task.case.seed else ValueError(task.case.name)


def _work_that_raises(work, task):
    """In place of a worker's job."""
    return places.attempt(_raise, task, None, None)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_tracebacks_cross_processes_whatever_their_exception(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_work", _work_that_raises)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {})
    failures = runner.run_cases(run, config(), cases, console, workers=2)
    for case, name in zip(cases, ("ValueError", "Stubborn")):
        assert failures[case.name].startswith(f"{name} at {__file__}:")
        trace = run.path("failures", f"{case.name}.txt").read_text()
        assert "in _raise\n" in trace and case.name in trace.splitlines()[-1]


def _fail_or_die(work, task):
    """In place of a worker's job."""
    if work.args[0].smoke:
        os.kill(os.getpid(), signal.SIGKILL)
    raise FloatingPointError(task.case.name)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_that_fail_and_workers_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_work", _fail_or_die)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "failing", {})
    failures = runner.run_cases(run, config(), cases, console, workers=2)
    for case in cases:  # on the way back, outside of what a worker catches
        assert failures[case.name].startswith("FloatingPointError") and case.name in failures[case.name]
        assert "in _fail_or_die" in run.path("failures", f"{case.name}.txt").read_text()
    with pytest.raises(ChildProcessError, match="a worker was killed .out of memory.*; --resume goes on"):
        runner.run_cases(Run(tmp_path / "killed", {}), config(smoke=True), cases, console, workers=2)


def test_what_workers_say_is_printed_and_what_they_do_becomes_a_bar(capsys):
    with runner.Progress() as progress:
        screen = places.Screen(progress)
        for update in (("a", "overfitting [sic]"), ("a", 1, 5), ("a", 2, 5), ("late", 5, 5)):
            screen.show(*update)
        assert list(screen.bars) == ["a"] and progress.tasks[0].completed == 2
        screen.gone("a")
        assert not progress.tasks
    assert "a: overfitting [sic]" in capsys.readouterr().out


def test_every_gpu_of_a_machine_has_a_worker_before_any_is_shared(monkeypatch):
    """On devices that are made up: no machine with several GPUs was at hand."""
    gpus, taken, handed = ["cuda:0", "cuda:1", "cuda:2"], [], queue.Queue()
    assert places.handed_out(gpus, 3) == gpus and places.handed_out(gpus, 5) == [*gpus, "cuda:0", "cuda:1"]
    monkeypatch.setattr(places.torch.cuda, "set_device", taken.append)
    for device in places.handed_out([*gpus, "cpu"], 4):
        handed.put(device)
    for _ in range(4):
        places._start_worker(None, os.getppid(), handed)
    assert taken == gpus and handed.empty()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has"), "CUDA out of memory;"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPUAllocator: can't"),
    ],
)
def test_memory_that_is_too_small_is_named_with_the_remedy(error, cause):
    told = failure_of(error).sentence
    assert cause in told and told.endswith("a smaller --batch-size or a smaller --model") and "fewer --workers" in told


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_a_killed_parent():
    worker = (
        "import time; from experiments.harness.run.places import _start_worker; _start_worker(None, {}); "
        "print(1, flush=True); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}.format(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.kill()
    # The worker holds the pipe open for as long as it lives.
    assert process.communicate(timeout=20)[0] == b""


def _phases(run):
    return [[*record.seconds] + [record.audit and record.audit.extent] for record in run.records]


def test_what_records_lack_is_measured_on_the_nets_that_are_there(tmp_path, monkeypatch, capsys):
    seen, console = [], runner.Progress().console

    def run_task(config, folder, task, progress, say):
        seen.append((task.case.seed, task.phase))
        return FOUND[task.phase]

    monkeypatch.setattr(runner, "run_task", run_task)
    cases = [Case("explicit_euler", 1, seed) for seed in (0, 1)]
    run = Run(tmp_path / "run", {"seeds": [0, 1]})
    assert runner.run_cases(run, config(seeds=(0, 1), audit="first"), cases, console, workers=1) == {}
    basis = ["training", "attacks", "solver", "stability"]
    assert _phases(run) == [[*basis, "audit", "whole"], [*basis, "checks", "cheap"]]
    # Their checkpoints are gone: what they lack cannot be measured, and nothing runs.
    seen.clear()
    runner.run_cases(run, config(seeds=(0, 1)), cases, console, workers=1)
    assert not seen and "2 of 2 cases are already there" in capsys.readouterr().out
    (run.path("checkpoints") / f"{cases[1].name}.pt").touch()
    runner.run_cases(run, config(seeds=(0, 1)), cases, console, workers=1)
    assert seen == [(1, "audit")] and _phases(run)[1] == [*basis, "checks", "audit", "whole"]
    assert Run(tmp_path / "run", {"seeds": [0, 1]}, resume=True).records == run.records


def test_a_budget_takes_further_seeds_and_the_configuration_says_which(tmp_path, monkeypatch, capsys):
    """Each task takes a second of a clock that stands still otherwise."""
    now = [0.0]

    def run_task(config, folder, task, progress, say):
        now[0] += 1
        return FOUND[task.phase] | {"seconds": 1.0}

    def conduct(seeds, start, resume=False):
        run = Run(tmp_path / "run", {"seeds": list(seeds)}, resume)
        now[0] = start
        budget = Budget(60.0, start, lambda seed: [Case("explicit_euler", 1, seed)])
        cases = [Case("explicit_euler", 1, seed) for seed in seeds]
        console = runner.Progress().console
        assert runner.run_cases(run, config(seeds=seeds, audit="first"), cases, console, 1, budget, ("first", "cheap")) == {}
        return run

    monkeypatch.setattr(runner, "run_task", run_task)
    monkeypatch.setattr(runner, "CLOCK", lambda: now[0])
    run = conduct((0, 1, 2), 5.0)
    seeds = run.config["seeds"]
    assert now[0] <= 65 - 8 and len(seeds) == 10 and json.loads(run.path("config.json").read_text())["seeds"] == seeds
    assert sorted(record.seed for record in run.records) == seeds
    assert "Plan for 1 min on 1 worker: 12 seeds (0 to 11)" in capsys.readouterr().out
    for seed in seeds:
        (run.path("checkpoints") / f"{Case('explicit_euler', 1, seed).name}.pt").touch()
    again = conduct(tuple(seeds), 1000.0, resume=True)
    assert again.config["seeds"] == list(range(20)) and "10 of 10 cases are already there" in capsys.readouterr().out


def test_a_run_that_is_cut_short_has_all_schemes_of_the_seeds_it_has():
    seeds = range(6)
    cases = [Case(scheme, 1, seed) for scheme in ("explicit_euler", "implicit_euler") for seed in seeds]
    whole = [(scheme, seed) for seed in seeds for scheme in ("implicit_euler", "explicit_euler")]

    def order(workers):
        return [(case.scheme, case.seed) for case in in_order(cases, seeds, workers)]

    packed = [("implicit_euler", 4), ("implicit_euler", 5), ("explicit_euler", 4), ("explicit_euler", 5)]
    assert order(0) == whole and order(1) == whole and order(2) == [*whole[:8], *packed]
    assert order(16)[:2] == whole[:2] and [scheme for scheme, _ in order(16)[2:7]] == ["implicit_euler"] * 5


def test_what_will_be_done_is_said_before_it_is(monkeypatch):
    monkeypatch.setattr(conduct, "forecast", lambda config, cases: SimpleNamespace(seconds=lambda workers: 600 / workers))
    cases = [Case("heun", 1, seed, (2, 4)) for seed in (0, 1)]

    def said(cases, **changes):
        console = Console(file=io.StringIO(), width=40)
        conduct._announce(config(**changes), cases, 2, console)
        return console.file.getvalue()

    line = (
        "2 nets to train, 6 to attack (heun; seeds 0, 1): small on digits, 1200 training and 450 test images; pgd20 at 0.05, "
        "0.1, 0.15; 2 workers of one thread\n"
    )
    assert said(cases) == line + "About 5 min in all, by a step of each scheme\n"
    assert said(cases, budget=60.0) == said(cases, smoke=True) == line and said([]) == "", "nothing is timed for nothing"


def test_a_file_is_told_of_what_a_terminal_sees_as_bars(monkeypatch, tmp_path):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    for terminal in (False, True):
        out.truncate(0)
        with runner.progress_bars(Console(file=out, width=150, force_terminal=terminal)) as progress:
            progress.add_task("nets", total=6)
            screen, now[0] = places.Screen(progress), 0.0
            for now[0] in (0.0, 61.0, 100.0, 122.0, 1000.0, 1050.0):
                screen.show("a: training", int(now[0]), 2000)
        said = [line for line in out.getvalue().splitlines() if line.startswith("After")]
        lines = (
            "After 1 min 1 s: nets 0 of 6, a: training 61 of 2000",
            "After 2 min 2 s: nets 0 of 6, a: training 122 of 2000",
            "After 16 min 40 s: nets 0 of 6, a: training 1000 of 2000",
        )
        assert said == ([] if terminal else [*lines])
    found = {phase: part | {"seconds": 61.0 if phase == "attacks" else 1.0} for phase, part in FOUND.items()}
    monkeypatch.setattr(runner, "run_task", lambda config, folder, task, progress, say: found[task.phase])
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], Console(file=io.StringIO(), width=150)
    runner.run_cases(Run(tmp_path / "run", {}), config(audit="none"), cases, console, workers=1)
    lines = console.file.getvalue().strip().splitlines()
    assert [line.split(": ")[-1] for line in lines[::2]] == ["attacks took 1 min 1 s"] * 2
    assert [line.split(", ")[-1] for line in lines[1::2]] == ["1 of 2", "2 of 2"]
