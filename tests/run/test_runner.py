"""Running cases in this process and in others: failures leave the rest, and nothing outlives its parent."""

import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from records import config, record

from experiments.harness.run import runner
from experiments.harness.run.case import Case
from experiments.harness.run.folder import Run
from odenets.errors import Divergence, InputError, Unsolved

ROOT = Path(__file__).parents[2]


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
    def run_case(config, folder, case, progress, say):
        if case.seed == 0:
            raise error
        return [record(seed=case.seed)]

    monkeypatch.setattr(runner, "run_case", run_case)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {})
    trace = run.path("failures", f"{cases[0].name}.txt")
    sentence = sentence.replace("HERE", f"{__file__}:{run_case.__code__.co_firstlineno + 2}")
    expected = sentence if isinstance(error, InputError | Unsolved) else f"{sentence} (traceback: {trace})"
    assert runner.run_cases(run, config(), cases, console, workers=1) == {cases[0].name: expected}
    assert run.records == [record(seed=1)] and f"{cases[0].name}: failed: {expected}" in capsys.readouterr().out
    assert trace.exists() == (expected != sentence)
    if trace.exists():
        assert "in run_case\n    raise error" in trace.read_text() and type(error).__name__ in trace.read_text()
    # It succeeds when tried again, and what was kept of the failure is gone.
    monkeypatch.setattr(runner, "run_case", lambda config, folder, case, progress, say: [record(seed=case.seed)])
    assert runner.run_cases(run, config(), cases, console, workers=1) == {} and not trace.parent.exists()


def test_a_full_disk_is_no_matter_of_one_case(tmp_path, monkeypatch):
    def run_case(*arguments):
        raise OSError("cannot save x (No space left on device)")

    monkeypatch.setattr(runner, "run_case", run_case)
    with pytest.raises(OSError, match="No space left"):
        runner.run_cases(
            Run(tmp_path / "run", {}), config(), [Case("explicit_euler", 1, 0)], runner.Progress().console, workers=1
        )


class Stubborn(Exception):
    """An exception that pickle cannot bring back: its constructor wants more than its message."""

    def __init__(self, one, other):
        super().__init__(one)


def _raise(config, folder, case, *rest):
    raise Stubborn(case.name, 1) if case.seed else ValueError(case.name)


def _work_that_raises(config, folder, case):
    """In place of a worker's job, in the worker: what is monkeypatched there is not."""
    runner.run_case = _raise
    return runner._attempt(config, folder, case, None, None)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_tracebacks_cross_processes_whatever_their_exception(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", _work_that_raises)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {})
    failures = runner.run_cases(run, config(), cases, console, workers=2)
    for case, name in zip(cases, ("ValueError", "Stubborn")):
        assert failures[case.name].startswith(f"{name} at {__file__}:")
        trace = run.path("failures", f"{case.name}.txt").read_text()
        assert "in _raise\n" in trace and case.name in trace.splitlines()[-1]


def _fail_or_die(config, folder, case):
    """In place of a worker's job."""
    if config.smoke:
        os.kill(os.getpid(), signal.SIGKILL)
    raise FloatingPointError(case.name)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_that_fail_and_workers_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", _fail_or_die)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "failing", {})
    failures = runner.run_cases(run, config(), cases, console, workers=2)
    for case in cases:  # on the way back, outside of what a worker catches
        assert failures[case.name].startswith("FloatingPointError") and case.name in failures[case.name]
        assert "in _fail_or_die" in run.path("failures", f"{case.name}.txt").read_text()
    with pytest.raises(ChildProcessError, match="a worker was killed .out of memory.*; --resume goes on"):
        runner.run_cases(Run(tmp_path / "killed", {}), config(smoke=True), cases, console, workers=2)


def test_what_workers_say_is_printed_and_what_they_do_becomes_a_bar(capsys):
    updates, bars = queue.Queue(), {}
    for update in (("a", "overfitting [sic]"), ("a", "training", 1, 5), ("a", "training", 2, 5)):
        updates.put(update)
    with runner.Progress() as progress:
        runner._show(updates, bars, progress)
        assert list(bars) == ["a"] and progress.tasks[0].completed == 2
    assert "a: overfitting [sic]" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_end_with_a_killed_parent():
    worker = (
        "import time; from experiments.harness.run.runner import _start_worker; _start_worker(None, {}); "
        "print(1, flush=True); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}.format(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.kill()
    # The worker holds the pipe open for as long as it lives.
    assert process.communicate(timeout=20)[0] == b""
