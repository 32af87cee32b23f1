"""Networks named on a command line: checkpoints, folders of runs, import paths; and what is wrong with them."""

import json
import sys

import pytest
import torch
from records import described

import odenets
from experiments.harness.run import checkpoints
from experiments.harness.run.subject import load_subject, load_subjects

CODE = """
import helper
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, helper.CLASSES)

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, helper.CLASSES)).eval()

ready, number = make(), 3
def wrong(): return [make()]
def training(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
def failing(): raise RuntimeError("no weights\\nanywhere")
def quitting(): raise SystemExit(7)
def loaded(prefix, net=None, cut=""):
    net = net or make()
    net.load_state_dict({prefix + key.removeprefix(cut): value for key, value in net.state_dict().items()})
def parallel(): loaded("module.")
def compiled(): loaded("_orig_mod.")
def wrapped(): loaded("", nn.DataParallel(make()), "module.")
def unloadable():
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    net.load_state_dict({"3.weight": nn.Linear(3, 3).weight, "3.bias": net[3].bias, "extra": net[3].bias})
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({}))
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("CLASSES = 10")
    (tmp_path / "broken.py").write_text("import helper\ndef make(:\n")
    yield tmp_path
    for name in ("own", "evaluated_own", "evaluated_typed", "evaluated_broken", "helper"):
        sys.modules.pop(name, None)


def saved(folder, name, **changes):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="implicit", substeps=2)
    path = folder / "run" / "checkpoints" / f"{name}.pt"
    checkpoints.save(path, described(scheme="implicit_euler", substeps=2, state_dict=net.state_dict(), **changes))
    return net.eval(), path


def test_a_checkpoint_and_a_folder(folder):
    net, path = saved(folder, "b")
    subject, x = load_subject(str(path)), torch.rand(2, 1, 8, 8)
    assert (subject.name, subject.text, subject.meta["dataset"], subject.meta["seed"]) == ("b", str(path), "digits", 1)
    assert torch.equal(subject.net(x), net(x)) and not subject.net.training
    assert load_subject(str(folder / "run")).name == "b"
    saved(folder, "a")
    assert [subject.name for subject in load_subjects(str(folder / "run"))] == ["a", "b"]
    with pytest.raises(ValueError, match=r"holds 2 checkpoints; give one of them, such as .*a.pt"):
        load_subject(str(folder / "run"))


@pytest.mark.parametrize("name", ["make", "ready", "Net"])
def test_an_import_path(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    for text in (f"{folder / 'own.py'}:{name}", f"own.py:{name}", f"own:{name}"):
        subject = load_subject(text)
        assert isinstance(subject.net, torch.nn.Module) and not subject.net.training
        assert subject.meta is None and subject.name == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nothing.pt", "there is no 'nothing.pt'; give a checkpoint of a run"),
        ("nothing", "there is no 'nothing'"),
        ("run", "holds no finished checkpoint"),
        ("own.py", "as in own.py:NAME"),
        ("absent.py:make", "FileNotFoundError: no file absent.py"),
        ("no_such_package:make", "ModuleNotFoundError"),
        ("own.py:nobody", "AttributeError: .*nobody"),
        ("own.py:wrong", "own.py:wrong gave a list; it must be, or return, a torch"),
        ("own.py:number", "TypeError: 'int' object is not callable"),
        ("own.py:failing", r"own.py:failing cannot be had: RuntimeError at .*own.py:16: no weights$"),
        ("broken.py:make", r"broken.py:make cannot be had: SyntaxError at .*broken.py:2: "),
        (
            "own.py:unloadable",
            r"unloadable cannot be had: RuntimeError at .*own.py:\d+: Error.s. in loading state_dict for "
            r"Sequential: missing 0.weight, 0.bias, 1.weight, and 3 more; unexpected extra; size mismatch for 3",
        ),
        (
            "own.py:parallel",
            r"unexpected module.1.weight, module.1.bias; DataParallel and DistributedDataParallel put 'module.' "
            r"before the keys: load {key.removeprefix\('module.'\): value",
        ),
        ("own.py:compiled", r"torch.compile put '_orig_mod.' before the keys"),
        (
            "own.py:wrapped",
            r"missing module.1.weight, module.1.bias; unexpected 1.weight, 1.bias; the network is wrapped by "
            r"DataParallel",
        ),
        ("own.py:quitting", r"own.py:quitting cannot be had: SystemExit at .*own.py:17: 7"),
        ("own.py:training", r"1 is a BatchNorm2d in training mode.*return net.eval\(\)"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(folder, text, sentence, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_subject(text)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_another_architecture_or_damaged(folder):
    _, path = saved(folder, "other", model="resnet18")
    with pytest.raises(ValueError, match="holds weights of another architecture than this version's resnet18"):
        load_subject(str(path))
    _, path = saved(folder, "damaged")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged.pt is damaged"):
        load_subject(str(path))


def test_a_file_may_hold_what_looks_for_its_own_module(folder):
    (folder / "typed.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch import nn\n\n@dataclass\nclass Width:\n    width: int = 64\n\n"
        "def make(): return nn.Linear(Width().width, 10)\n"
    )
    assert load_subject(f"{folder / 'typed.py'}:make").net.in_features == 64
