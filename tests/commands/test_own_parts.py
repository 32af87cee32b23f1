"""Parts of a user's own on the command line: what is read, what is refused, what a run remembers of them."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import odenets
import stability
from experiments import compare_schemes, evaluate
from experiments.harness.run import own
from odenets.own import MOVED, find_own

OWN = """
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import helper
import odenets
import stability

RALSTON = odenets.Tableau(
    "ralston", A=[[0, 0], [2 / 3, 0]], b=[1 / 4, 3 / 4], order=2, source="Ralston (1962)", r_polynomial=(1, 1, 0.5)
)


def second_order(alpha=0.5):
    return odenets.Tableau("any", A=[[0, 0], [alpha, 0]], b=[1 - 1 / (2 * alpha), 1 / (2 * alpha)], order=2, source="Butcher")


MIDPOINT = odenets.get_scheme("implicit_midpoint(tol=1e-5)")


@dataclass(frozen=True, eq=False)
class Damped(odenets.Scheme):
    rate: float = 0.5
    name = "damped"

    def step(self, f, t, y, h, gradient="exact", record=None):
        return y + self.rate * h * f(t, y)

    def amplification(self, z):
        return 1 + self.rate * z


class Field(nn.Module):
    autonomous = True

    def __init__(self, layers, channels, rate=1.0):
        super().__init__()
        self.layers, self.rate = layers(channels, channels), rate

    def forward(self, t, y):
        return self.layers(y) - self.rate * y


def net(num_classes, in_channels, width=8):
    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=num_classes, width_per_group=64)


def small(num_classes, in_channels, scheme, substeps, field):
    return odenets.ode_resnet_small(num_classes, in_channels, scheme, substeps, field)


def sign(net, x, y, threat, generator, indices, step=1.0):
    return (x + threat.project(step * (stability.fgsm(net, x, y, threat) - x))).clamp(0, 1)


def largest(block, power=1.0):
    return block.ritz.abs().amax(1) ** power


def shapeless(block): return 3.0
def images():
    return torch.arange(40 * 64).view(40, 8, 8).remainder(256).to(torch.uint8), [3, 7] * 20


def stranger(num_classes, in_channels, depth): return None
def several(): return [torch.zeros(1, size, 8) for size in (8, 9)] * 5, [0, 1] * 5
def one(): return torch.zeros(10, 8, 8), [4] * 10
def failing(num_classes, in_channels, scheme, substeps, field): raise KeyError("weights")
def plain(num_classes, in_channels, scheme, substeps, field): return nn.Linear(2, 2)
def wrong_attack(net, x, y, threat, generator, indices): return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("CLASSES = 10\n")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("helper", None)
    yield tmp_path
    for name in ("helper", "own"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("spec", "canonical", "factor"),
    [
        ("own.py:RALSTON", "own.py:RALSTON", 0.5),
        ("own:RALSTON", "own:RALSTON", 0.5),
        ("own.py:second_order(alpha=0.5)", "own.py:second_order", 0.5),
        ("own.py:second_order( alpha=1 )", "own.py:second_order(alpha=1.0)", 0.5),
        ("own.py:Damped(rate=0.25)", "own.py:Damped(rate=0.25)", 0.75),
        ("own.py:MIDPOINT(tol=1e-4)", "own.py:MIDPOINT(tol=0.0001)", 1 / 3),
    ],
)
def test_schemes_are_found_again_by_what_they_are_called(folder, spec, canonical, factor):
    scheme = odenets.get_scheme(spec)
    assert str(scheme) == canonical and odenets.get_scheme(canonical) == scheme
    assert np.isclose(scheme.amplification(np.array([-1.0 + 0j]))[0], factor)
    assert str(scheme.tightened(1e-8, 50)) != canonical or not scheme.solves


def test_fields_and_attacks(folder):
    field = odenets.get_field("own.py:Field(rate=2)")
    assert str(field) == "own.py:Field(rate=2.0)" and odenets.get_field(str(field)) == field
    net = odenets.get_model("own.py:small").build(4, 1, "explicit", 1, field).eval()
    assert next(iter(odenets.stages(net).values())).fields[0].rate == 2
    attack = stability.get_attack("own.py:sign(step=0.5)")
    assert str(attack) == "own.py:sign(step=0.5)" and attack.follows_gradient
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    moved = attack.bound(stability.Linf(0.1), 0)(net, x, y) - x
    assert moved.abs().max() <= 0.05 + 1e-6 and moved.abs().max() > 0.04


@pytest.mark.parametrize("spec", ["own.py:net", "torchvision.models:resnet18", "own.py:net(width=4)"])
def test_resnets_fit_classes_and_channels(folder, spec):
    torch.manual_seed(0)
    net = odenets.get_model(spec).build(4, 1, "explicit", 2)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    assert {stage.substeps for stage in odenets.stages(net).values()} == {2}


def test_grey_images_mean_to_a_network_of_colours_what_they_did(folder):
    torch.manual_seed(0)
    colour = odenets.get_model("torchvision.models:resnet18").build(4, 3)
    torch.manual_seed(0)
    grey = odenets.get_model("torchvision.models:resnet18").build(4, 1)
    grey.fc.load_state_dict(colour.fc.state_dict())
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


RUN = [
    "--attacks",
    "own.py:sign",
    "--predictors",
    "own.py:largest(power=2)",
    "--epsilons",
    "0.1",
    "--smoke",
    "--device",
    "cpu",
    "--audit",
    "none",
    "--workers",
    "1",
]
PARTS = [
    "--schemes",
    "explicit,own.py:RALSTON",
    "--model",
    "own.py:small",
    "--fields",
    "own.py:Field",
    "--dataset",
    "own.py:images",
]


def test_a_run_of_nothing_but_own_parts_goes_on_with_the_same_code_only(folder, capsys):
    arguments = [*PARTS, *RUN, "--out", "out"]
    assert compare_schemes.main(arguments) == 0
    assert "the classes 3, 7 are counted as 0 to 1" in capsys.readouterr().out
    table = (folder / "out" / "accuracy.csv").read_text().splitlines()
    assert sum("own.py:images,own.py:small,own.py:RALSTON,1,standard,0,own.py:sign,0.1,exact" in row for row in table) == 1
    stability_table = (folder / "out" / "stability.csv").read_text().splitlines()
    squares = [row for row in stability_table if "own.py:largest(power=2.0)" in row]
    assert len(squares) == sum(",spectral_radius," in row for row in stability_table) > 0
    assert set(json.loads((folder / "out" / "config.json").read_text())["own"]) == {"own.py", "helper.py", "own.py:images"}
    checkpoint = "out/checkpoints/own.py_RALSTON-own.py_Field-substeps1-seed0.pt"
    evaluation = [checkpoint, "--attacks", "own.py:sign", "--epsilons", "0.1", "--audit", "none", "--device", "cpu"]
    assert evaluate.main([*evaluation, "--out", "again"]) == 0
    ours, theirs = ((folder / name / "accuracy.csv").read_text().splitlines() for name in ("out", "again"))
    assert [row.split(",")[9:12] for row in theirs if "own.py:sign" in row] == [
        row.split(",")[9:12] for row in ours if "RALSTON" in row and "own.py:sign" in row
    ]
    assert compare_schemes.main([*arguments, "--resume"]) == 0
    (folder / "helper.py").write_text("CLASSES = 11\n")
    for main, line, sentence in (
        (compare_schemes.main, [*arguments, "--resume"], "another configuration (helper.py was"),
        (evaluate.main, [*evaluation, "--out", "more"], "helper.py has changed since"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(line)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1
    assert (folder / "out" / "accuracy.csv").read_text().splitlines() == table and not (folder / "more").exists()


BAD = [
    (["--schemes", "absent.py:S"], "absent.py:S cannot be had: FileNotFoundError: no file absent.py"),
    (["--schemes", "own.py:helper"], "own.py:helper is a module; a scheme is a Tableau or a Scheme, or returns one"),
    (["--schemes", "own.py:second_order(beta=1)"], "unknown parameter 'beta' in the scheme 'own.py:second_order'"),
    (["--schemes", "typo.py:S"], "typo.py:S cannot be had: tableau 'typo': order 1 of 1 does not hold"),
    (["--schemes", "own.py:RALSTON,own.py:RALSTON"], "stands twice in --schemes"),
    (["--schemes", "raises.py:S"], "raises.py:S cannot be had: ZeroDivisionError at "),
    (["--model", "own.py:stranger"], "own.py:stranger needs depth: a model is called with num_classes, in_channels, scheme"),
    (["--model", "own.py:failing"], "own.py:failing cannot be had: KeyError at "),
    (["--model", "own.py:plain"], "own.py:plain gave a Linear without an ODEStage"),
    (["--model", "own.py:one"], "own.py:one gave a tuple; a model is a function of num_classes"),
    (["--model", "own.py:net", "--fields", "skew"], "is a ResNet with fields of its own"),
    (["--fields", "own.py:small"], "own.py:small does not take layers, channels: a field is called with layers, channels"),
    (["--attacks", "own.py:net"], "own.py:net does not take net, x, y, threat, generator, indices: an attack"),
    (["--attacks", "own.py:wrong_attack"], "own.py:wrong_attack gave NoneType; an attack returns images like x"),
    (["--predictors", "own.py:shapeless"], "own.py:shapeless cannot be measured: it gave 3.0 of 1 sample"),
    (["--predictors", "own.py:net"], "own.py:net does not take block: a predictor is called with block"),
    (["--predictors", "magic"], "unknown predictor 'magic'; choose from step_norm"),
    (["--dataset", "own.py:several"], "own.py:several has images of 2 shapes, such as"),
    (["--dataset", "own.py:one"], "own.py:one has one class only (4); a classifier needs two at least"),
    (["--dataset", "own.py:sign"], "own.py:sign needs net, x, y, threat, generator, indices: a data set is called without"),
    (["--dataset", "empty"], "empty has no folders with images"),
    (["--dataset", "hollow"], "hollow has no folders with images, one for each class, or one of them is empty"),
    (["--dataset", "sizes"], "sizes has images of 2 sizes, such as"),
    (["--dataset", "lone"], "lone has one class only (a)"),
    (["--dataset", "parts"], "parts holds test, train, which look like parts of a data set: give one of them"),
    (["--dataset", "broken"], "0.png cannot be read as an image"),
    (["--dataset", "absent.npz"], "no file absent.npz; give a folder of class folders"),
    (["--dataset", "other.npz"], "other.npz has no array images, labels, it has x"),
    (["--dataset", "floats.npz"], "floats.npz has images of torch.float64; give uint8, or floating-point numbers in [0, 1]"),
    (["--dataset", "digits", "--image-size", "8"], "--image-size is for images of your own"),
    (["--dataset", "nowhere/"], "unknown --dataset 'nowhere/'; choose from digits, mnist"),
]


def folder_of_images(path, sizes, count=6):
    for name, size in sizes.items():
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((size, size), 20 * index, np.uint8)).save(path / name / f"{index}.png")


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_leaves_nothing(folder, arguments, sentence, capsys):
    (folder / "empty").mkdir()
    (folder / "hollow" / "a").mkdir(parents=True)
    folder_of_images(folder / "sizes", {"a": 8, "b": 9})
    folder_of_images(folder / "lone", {"a": 8})
    folder_of_images(folder / "parts", {"train/a": 8, "test/a": 8})
    folder_of_images(folder / "broken", {"a": 8, "b": 8})
    (folder / "broken" / "a" / "0.png").write_bytes(b"no image")
    np.savez(folder / "other.npz", x=np.zeros(3))
    np.savez(folder / "floats.npz", images=np.full((10, 8, 8), 2.0), labels=np.arange(10) % 2)
    (folder / "typo.py").write_text(
        "import odenets\nS = odenets.Tableau('typo', A=[[0.0]], b=[0.9], order=1, source='a book')\n"
    )
    (folder / "raises.py").write_text("def f():\n    return 1 / 0\n\n\nS = f()\n")
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main([*RUN[4:], *arguments, "--out", "out"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1
    assert not (folder / "out").exists()
    if "raises.py:S" in arguments:
        assert "raises.py:2: division by zero" in error


def test_code_travels_with_what_it_imports_from_beside_itself(folder, tmp_path_factory, monkeypatch):
    (folder / "package" / "inner").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "inner/__init__": "",
        "inner/part": "from ..near import S",
        "near": "import helper\nS = 'heun'",
    }.items():
        (folder / "package" / f"{name}.py").write_text(text)
    specs = ["own.py:RALSTON", "own.py:net(width=3)", "package.inner.part:S", "torchvision.models:resnet18", "rk4"]
    codes = own.codes_of(specs)
    assert [code.place for code in codes] == ["own.py", "package.inner.part", "torchvision.models"]
    assert set(own.digests(codes)) == {
        "own.py",
        "helper.py",
        *(f"package/{n}.py" for n in ("inner/part", "inner/__init__", "__init__", "near")),
    }
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(odenets.InputError, match="no file own.py"):
        odenets.get_scheme("own.py:RALSTON")
    own.unpack(codes, elsewhere / "code")
    try:
        assert str(odenets.get_scheme("own.py:RALSTON")) == "own.py:RALSTON"
        assert own.digests(own.codes_of(specs)) == own.digests(codes)
    finally:
        MOVED.clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "package"]:
            del sys.modules[name]


ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/guide.md").read_text(encoding="utf-8").split("## Bring your own")[1].split("\n## ")[0]
LINES = re.findall(r"^\.venv/bin/python experiments/(\w+)\.py (.*)$", SECTION, flags=re.M)
QUICK = ["--smoke", "--device", "cpu", "--audit", "none", "--workers", "1"]


@pytest.fixture
def guide(folder):
    """The guide's my.py, a folder of PNGs of two shapes and three sizes, and an archive."""
    (folder / "my.py").write_text(re.search("```python\n(.*?)```", SECTION, re.S)[1])
    generator = np.random.default_rng(0)
    for name, inner in (("bars", np.s_[:, 8:14]), ("squares", np.s_[4:18, 4:18])):
        (folder / "my_images" / name).mkdir(parents=True)
        for index in range(40):
            image = generator.integers(0, 100, (22, 22 + index % 3, 3), dtype=np.uint8)
            image[inner] += 150
            Image.fromarray(image).save(folder / "my_images" / name / f"{index}.png")
    digits = generator.random((60, 8, 8), dtype=np.float32)
    np.savez(folder / "my.npz", images=digits, labels=np.arange(60) % 4)
    return folder


def test_the_guides_lines_are_understood_by_their_scripts(guide):
    assert [script for script, _ in LINES] == [
        "compare_schemes",
        "compare_schemes",
        "evaluate",
        "compare_schemes",
        "compare_schemes",
    ]
    for _, line in LINES:
        for spec in [word for word in shlex.split(line) if word.startswith("my.py:")]:
            assert find_own(spec.split(",")[0], "part").name


def test_the_guides_own_parts_all_at_once(guide):
    assert compare_schemes.main([*shlex.split(LINES[1][1]), *QUICK, "--attacks", "my.py:corners", "--out", "out"]) == 0
    table = (guide / "out" / "accuracy.csv").read_text()
    assert "my.py:load,my.py:narrow,my.py:two_stages(alpha=0.75)" in table.replace('"', "")
    assert "implicit_euler,1,standard,0,my.py:corners" in table and "detached" not in table
    assert "my.py:departure" in (guide / "out" / "stability.csv").read_text()
    assert "two_stages(alpha=0.75)" in (guide / "out" / "report.html").read_text(encoding="utf-8")
    evaluation = [*shlex.split(LINES[2][1]), "--test-limit", "20", "--audit", "none", "--device", "cpu"]
    assert evaluate.main([*evaluation, "--out", "evaluated"]) == 0
    rows = list(csv.DictReader((guide / "evaluated" / "accuracy.csv").read_text().splitlines()))
    assert {(row["dataset"], row["model"], row["total"]) for row in rows} == {("my.npz", "my.py:linear(width=32)", "15")}


@pytest.mark.slow
def test_a_scheme_a_resnet_and_a_folder_of_images_give_a_whole_report(guide, capsys):
    assert compare_schemes.main([*shlex.split(LINES[0][1]), *QUICK[:3], "--audit", "cheap", "--out", "out"]) == 0
    rows = list(csv.DictReader((guide / "out" / "accuracy.csv").read_text().splitlines()))
    assert {row["scheme"] for row in rows} == {"explicit_euler", "my.py:SCHEME"}
    assert {(row["dataset"], row["model"], row["total"]) for row in rows} == {("my_images", "my.py:net", "20")}
    page = (guide / "out" / "report.html").read_text(encoding="utf-8")
    assert "my.py:SCHEME" in page and "my_images" in page
    assert {path.name for path in (guide / "out" / "checkpoints").glob("*.pt")} == {
        "explicit_euler-substeps1-seed0.pt",
        "my.py_SCHEME-substeps1-seed0.pt",
    }
    assert "the classes bars, squares are counted as 0 to 1" in capsys.readouterr().out
    for name in ("audit.csv", "stability.csv"):
        assert "my.py:SCHEME" in (guide / "out" / name).read_text()
    *unsized, option, size = shlex.split(LINES[0][1])
    assert compare_schemes.main([*unsized, option, size, *QUICK[:3], "--audit", "cheap", "--out", "out", "--resume"]) == 0
    with pytest.raises(SystemExit):
        compare_schemes.main([*unsized, *QUICK[:3], "--audit", "cheap", "--out", "other"])
    assert "my_images has images of 3 sizes, such as" in capsys.readouterr().err
