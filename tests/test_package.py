import ast
import re
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
LAYERS = ["odenets", "stability", "experiments"]  # imports go leftwards only


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path in (ROOT / layer).rglob("*.py"):
        wrong = [name for name in _imports(path) if name.split(".")[0] in above]
        assert not wrong, f"{path} imports {wrong}"


# What the files of a folder may import of ours. A folder says by this which question it answers, and from what it answers it.
KNOWN = {
    "odenets/solve": ["odenets.errors", "odenets.types", "odenets.solve"],
    "odenets/schemes": ["odenets.errors", "odenets.types", "odenets.specs", "odenets.own", "odenets.solve", "odenets.schemes"],
    "odenets/nets": ["odenets"],
    "stability/methods": ["odenets.schemes", "odenets.types", "stability.errors", "stability.types", "stability.methods"],
    "stability/linear": [
        "stability.errors",
        "stability.types",
        "stability.random",
        "stability.scaling",
        "stability.krylov",
        "stability.linear",
    ],
    "stability/attacks": [
        "stability.errors",
        "stability.types",
        "stability.specs",
        "stability.random",
        "stability.scaling",
        "stability.attacks",
    ],
    "stability/network": [
        "odenets",
        "stability.errors",
        "stability.types",
        "stability.random",
        "stability.scaling",
        "stability.specs",
        "stability.methods",
        "stability.linear",
        "stability.network",
    ],
    "stability/certificates": [
        "odenets",
        "stability.errors",
        "stability.types",
        "stability.methods",
        "stability.attacks",
        "stability.certificates",
    ],
    "stability/masking": [
        "odenets",
        "stability.errors",
        "stability.types",
        "stability.random",
        "stability.attacks",
        "stability.masking",
    ],
    "experiments/harness/training": [
        "odenets",
        "stability",
        "experiments.harness.command",
        "experiments.harness.config",
        "experiments.harness.words",
        "experiments.harness.training",
    ],
    "experiments/harness/run": [
        "odenets",
        "stability",
        "experiments.harness.command",
        "experiments.harness.words",
        "experiments.harness.training",
        "experiments.harness.run",
    ],
    "experiments/harness/report": [
        "odenets",
        "stability",
        "experiments.harness.command",
        "experiments.harness.words",
        "experiments.harness.run.certified",
        "experiments.harness.run.config",
        "experiments.harness.run.schema",
        "experiments.harness.statistics",
        "experiments.harness.report",
    ],
    "experiments/harness/statistics": ["odenets.errors", "experiments.harness.statistics"],
}


@pytest.mark.parametrize("folder", KNOWN)
def test_folders_know_what_they_need(folder):
    for path in (ROOT / folder).glob("*.py"):
        ours = [name for name in _imports(path) if name.split(".")[0] in LAYERS]
        wrong = [name for name in ours if not any(name == known or name.startswith(known + ".") for known in KNOWN[folder])]
        assert not wrong, f"{path} imports {wrong}"


def test_a_tableau_needs_numpy_alone():
    found = {name.split(".")[0] for name in _imports(ROOT / "odenets/schemes/tableau.py")}
    assert found <= {"collections", "dataclasses", "functools", "math", "numpy", "typing", "odenets"}


def test_private_names_stay_in_their_file():
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LAYERS:
                    private = [
                        alias for alias in node.names if alias.name.startswith("_") or (alias.asname or "").startswith("_")
                    ]
                    assert not private, f"{path} imports {[alias.name for alias in private]} from {node.module}"


def test_no_function_hides_a_module():
    for layer in LAYERS:
        for package in (ROOT / layer).rglob("__init__.py"):
            exported = {
                alias.asname or alias.name
                for node in ast.walk(ast.parse(package.read_text()))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            modules = {
                path.stem for path in package.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
            }
            assert not exported & modules, f"{package} hides {exported & modules}"


def test_libraries_neither_print_nor_touch_files_nor_plot():
    for layer in LAYERS[:2]:
        for path in (ROOT / layer).rglob("*.py"):
            tree = ast.parse(path.read_text())
            calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            assert not calls & {"print", "open"} and "matplotlib" not in path.read_text(), path
            assert (
                "manual_seed(" not in re.sub(r"\.manual_seed\(", "", path.read_text())
                and "torch.manual_seed" not in path.read_text()
            ), path


def test_files_stay_readable():
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, f"{path} has more than 400 lines"


def test_environments_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["test"], *extras["docs"]}
    lines = (ROOT / "environment.yml").read_text().splitlines()
    pip = {line.strip()[2:] for line in lines if line.startswith("      - ")}
    assert pip - {"-e ."} == wanted
    assert f"- python{project['requires-python']}" in {line.strip() for line in lines}


def test_the_first_example_of_the_readme(capsys):
    torch.manual_seed(0)
    section = (ROOT / "docs/guide.md").read_text(encoding="utf-8").split("## In Python")[1]
    names = {}
    exec(compile(re.search("```python\n(.*?)```", section, re.S)[1], "docs/guide.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "('finite_differences', True), ('exact_gradient', True)" in printed and "upper bound" in printed
    assert names["stage"].stats.batch == len(names["x"]) and names["stage"].stats.converged.all()
    assert all(parameter.dtype == torch.float32 for parameter in names["net"].parameters())
