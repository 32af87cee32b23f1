"""The command `odenets`: the scripts by their short names; installed from a wheel, it runs in an empty folder."""

import importlib
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import odenets
from experiments.harness import console

ROOT = Path(__file__).parents[2]


def test_help_names_every_command_without_importing_torch():
    code = "import sys; from experiments.harness.console import main; main(['--help']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("False") and all(f"  {name} " in said for name in console.COMMANDS)


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_is_its_script(name, monkeypatch):
    script = importlib.import_module(f"experiments.{console.COMMANDS[name]}")
    monkeypatch.setattr(script, "main", lambda argv: argv)
    assert console.main([name, "--out", "x"]) == ["--out", "x"]


def test_what_is_no_command_is_one_sentence(capsys):
    assert console.main(["train"]) == 2
    assert capsys.readouterr().err == (
        "odenets: unknown command 'train'; choose from compare, sweep, evaluate, map, regions, solvers, relate, share, "
        "certify, reproduce, collect\n"
    )
    assert console.main(["--version"]) == 0 and capsys.readouterr().out == f"odenets {odenets.__version__}\n"


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(tmp_path):
    """Its dependencies are those of this environment: what is tested is that nothing of the project is left out."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True
    )
    venv.create(tmp_path / "env", system_site_packages=False, with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    own = next(path for path in sys.path if path.endswith("site-packages"))
    (next((tmp_path / "env").rglob("site-packages")) / "rest.pth").write_text(own + "\n")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "odenets", "compare", "--smoke", "--out", "run"],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and (tmp_path / "empty" / "run" / "report.html").exists(), done.stderr
