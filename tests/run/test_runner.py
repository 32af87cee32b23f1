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

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("error", "sentence"), [
    (RuntimeError("unsolved\nby far"), "unsolved"), (AssertionError("underflow"), "AssertionError: underflow"),
    (ZeroDivisionError(), "ZeroDivisionError"), (ValueError("diverged"), "diverged")])
def test_a_case_that_fails_leaves_the_others_and_its_sentence(error, sentence, tmp_path, monkeypatch):
    def run_case(config, folder, case, progress, say):
        if case.seed == 0:
            raise error
        return [record(seed=case.seed)]
    monkeypatch.setattr(runner, "run_case", run_case)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    run = Run(tmp_path / "run", {})
    assert runner.run_cases(run, config(), cases, console, workers=1) == {cases[0].name: sentence}
    assert run.records == [record(seed=1)]


def _fail_or_die(config, folder, case):
    """In place of a worker's job."""
    if config.smoke:
        os.kill(os.getpid(), signal.SIGKILL)
    raise FloatingPointError(case.name)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_that_fail_and_workers_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", _fail_or_die)
    cases, console = [Case("explicit_euler", 1, seed) for seed in (0, 1)], runner.Progress().console
    failures = runner.run_cases(Run(tmp_path / "failing", {}), config(), cases, console, workers=2)
    assert failures == {case.name: f"FloatingPointError: {case.name}" for case in cases}
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
    worker = ("import time; from experiments.harness.run.runner import _start_worker; _start_worker(None, {}); "
              "print(1, flush=True); time.sleep(60)")
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}.format(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    process.kill()
    # The worker holds the pipe open for as long as it lives.
    assert process.communicate(timeout=20)[0] == b""
