"""Networks that are shared: folders of JSON and safetensors, from checkpoints and back."""

import json
import sys

import pytest
import torch
from audited import trained, widened
from records import described

import odenets
from experiments import evaluate, share
from experiments.harness.run import checkpoints

pytest.importorskip("safetensors", reason="the extra hub is not installed")
META = described(scheme="ie_skip(gamma=0.05)", substeps=2, config={"splits": "fixed"}, field="residual")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(tmp_path / "net.pt", META | {"state_dict": widened(trained().state_dict())})
    return tmp_path


@pytest.mark.parametrize("make", [odenets.ode_resnet_small, odenets.ode_resnet50, odenets.ode_resnet_small_stride2])
def test_a_network_comes_back_as_it_was(tmp_path, make):
    torch.manual_seed(0)
    net = make(num_classes=3, in_channels=2, scheme="implicit(tol=1e-4)", field="damped(rate=0.25)").eval()
    odenets.set_scheme(net, "rk4", substeps=2)
    net.save_pretrained(tmp_path / "shared")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"config.json", "model.safetensors"}
    again, x = odenets.ODEResNet.from_pretrained(tmp_path / "shared"), torch.rand(2, 2, 8, 8)
    assert not again.training and torch.equal(again(x), net(x))
    assert {(str(stage.scheme), stage.substeps) for stage in odenets.stages(again).values()} == {("rk4", 2)}
    net.double().save_pretrained(tmp_path / "double")
    assert next(odenets.ODEResNet.from_pretrained(tmp_path / "double").parameters()).dtype == torch.float64


def test_a_checkpoint_there_and_back(folder, capsys):
    assert share.main(["net.pt", "shared"]) == 0 and share.main(["shared", "back.pt"]) == 0
    assert "Written: " in capsys.readouterr().out
    (one, first), (other, second) = (checkpoints.load_net(name) for name in ("net.pt", "back.pt"))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    tables = []
    for name in ("net.pt", "shared"):
        arguments = [name, "--attacks", "fgsm", "--epsilons", "0.1", "--test-limit", "20", "--audit", "none", "--device", "cpu"]
        assert evaluate.main([*arguments, "--out", f"of-{name}"]) == 0
        tables.append((folder / f"of-{name}" / "accuracy.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent", "x"], "there is no absent; give a checkpoint"),
        (["net.pt", "plain"], "plain exists; choose another name"),
        (["net.pt", "x.pt"], "x.pt should be a folder"),
        (["plain", "x"], "x should be a checkpoint NAME.pt"),
        (["plain", "x.pt"], "plain does not say which run trained its network"),
        (["hollow", "x.pt"], "hollow holds no config.json"),
        (["foreign", "x.pt"], "foreign holds no network of odenets in format 1"),
        (["cut", "x.pt"], "cut is damaged: SafetensorError"),
        (["other", "x.pt"], "other cannot be built by this version of odenets: RuntimeError"),
    ],
)
def test_what_cannot_be_shared_is_a_sentence(folder, arguments, sentence, capsys):
    net = odenets.ode_resnet_small()
    (folder / "hollow").mkdir()
    for name in ("plain", "foreign", "cut", "other"):
        net.save_pretrained(folder / name)
    (folder / "foreign" / "config.json").write_text('{"architectures": ["Bert"]}')
    (folder / "cut" / "model.safetensors").write_bytes(b"short")
    config = json.loads((folder / "other" / "config.json").read_text())
    (folder / "other" / "config.json").write_text(json.dumps(config | {"widths": [8, 16]}))
    with pytest.raises(SystemExit) as stopped:
        share.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and len(error.strip().splitlines()) == 1


def test_what_has_no_name_is_not_shared(tmp_path):
    net = odenets.ode_resnet_small()
    next(iter(odenets.stages(net).values())).configure(scheme="heun")
    with pytest.raises(odenets.InputError, match="have the schemes explicit_euler, heun"):
        net.save_pretrained(tmp_path)
    layers = lambda inputs, outputs, stride=1: torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, stride, 1))  # noqa: E731
    with pytest.raises(odenets.InputError, match="have layers of their own"):
        odenets.ODEResNet(layers, (2,), (16,)).save_pretrained(tmp_path)


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    net = odenets.ode_resnet_small()
    net.save_pretrained(tmp_path / "shared")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(odenets.InputError, match=r"there is no folder someone/net, and .* pip install .odenets\[hub\]"):
        odenets.ODEResNet.from_pretrained("someone/net")
    assert odenets.ODEResNet.from_pretrained(tmp_path / "shared")  # a folder needs no hub
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: net.save_pretrained(tmp_path), lambda: odenets.ODEResNet.from_pretrained(tmp_path / "shared")):
        with pytest.raises(odenets.InputError, match=r"needs the package safetensors: pip install .odenets\[hub\]"):
            call()
