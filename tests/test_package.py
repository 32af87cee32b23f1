import ast
import re
import tomllib
from pathlib import Path

import pytest

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
    above = LAYERS[LAYERS.index(layer) + 1:]
    for path in (ROOT / layer).rglob("*.py"):
        wrong = [name for name in _imports(path) if name.split(".")[0] in above]
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize(("path", "allowed"), [
    ("odenets/schemes/tableau.py", {"dataclasses", "functools", "math", "numpy", "typing"}),
    *((f"stability/{name}.py", None) for name in (
        "jacobian", "threats", "inputs", "losses", "ascent", "attacks", "apgd", "black_box", "judge")),
])
def test_some_modules_know_less(path, allowed):
    found = {name.split(".")[0] for name in _imports(ROOT / path)}
    assert found <= allowed if allowed else "odenets" not in found


def test_libraries_neither_print_nor_touch_files_nor_plot():
    for layer in LAYERS[:2]:
        for path in (ROOT / layer).rglob("*.py"):
            tree = ast.parse(path.read_text())
            calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            assert not calls & {"print", "open"} and "matplotlib" not in path.read_text(), path
            assert "manual_seed(" not in re.sub(r"\.manual_seed\(", "", path.read_text()) and "torch.manual_seed" not in path.read_text(), path


def test_files_stay_readable():
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 250, f"{path} has more than 250 lines"


def test_environments_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["test"]}
    lines = (ROOT / "environment.yml").read_text().splitlines()
    pip = {line.strip()[2:] for line in lines if line.startswith("      - ")}
    assert pip - {"-e ."} == wanted
    assert f"- python{project['requires-python']}" in {line.strip() for line in lines}
