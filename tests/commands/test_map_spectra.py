"""The survey of one network: a torchvision ResNet by import path, a checkpoint of ours, and what is refused."""

import csv

import numpy as np
import pytest
import torch
from records import described

from experiments import map_spectra
from experiments.harness.run import checkpoints

USERS = """
import torch
from torchvision.models.resnet import BasicBlock, ResNet

def net():
    torch.manual_seed(0)
    net = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=4)
    net.inplanes = 16  # of layers a quarter as wide
    net.conv1, net.bn1 = torch.nn.Conv2d(3, 16, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(16)
    net.layer1 = net._make_layer(BasicBlock, 16, 2)
    for number, width in ((2, 32), (3, 64), (4, 128)):
        setattr(net, f"layer{number}", net._make_layer(BasicBlock, width, 1, stride=2))
    net.fc = torch.nn.Linear(128, 4)
    return net.eval()

def plain():
    return torch.nn.Linear(2, 2)
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = tmp_path_factory.mktemp("users") / "users_net.py"
    path.write_text(USERS)
    return path


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_torchvision_resnet_by_import_path(users, tmp_path, capsys):
    out = tmp_path / "map"
    assert (
        map_spectra.main(
            [f"{users}:net", "--shape", "3,8,8", "--images", "2", "--scheme", "heun", "--device", "cpu", "--out", str(out)]
        )
        == 0
    )
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "blocks.csv",
        "spectra.csv",
        "growth.csv",
        "figures",
        "tables",
    }
    assert {path.stem for path in (out / "figures").iterdir()} == {"clouds", "growth", "pseudospectra"}
    page = (out / "report.html").read_text()
    assert page.count("data:image") == 3 and "heun, 2 random images" in page and "$" not in page.split("</style>")[1]
    spectra = rows(out / "spectra.csv")
    assert {row["kind"] for row in spectra} == {"Ritz value", "eigenvalue"}  # 16 x 2 x 2 entries: all eigenvalues
    for row in spectra[:50]:
        z = complex(float(row["re"]), float(row["im"]))
        assert float(row["abs_R"]) == pytest.approx(abs(1 + z + z * z / 2))
    growth = rows(out / "growth.csv")
    assert {row["perturbation"] for row in growth} == {"random", "adversarial"} and len(growth) == 2 * 2 * 5
    assert float(growth[0]["measured"]) == 1 and np.isnan(float(growth[0]["predicted"]))
    said = capsys.readouterr().out
    assert "max |R(h\u03bb)|" in said and "adversarial" in said
    assert "Kreiss constant" in said and str(out / "report.html") in said


@pytest.mark.slow
def test_a_checkpoint_of_ours_with_a_multistep_scheme(tmp_path):
    torch.manual_seed(0)
    description = described(field="gradient_flow", seed=0, epochs=0, epoch=0)
    net = checkpoints.build(description)
    checkpoints.save(tmp_path / "net.pt", {**description, "state_dict": net.state_dict()})
    out = tmp_path / "map"
    assert (
        map_spectra.main([str(tmp_path / "net.pt"), "--images", "1", "--scheme", "ab2", "--block", "1,0", "--out", str(out)])
        == 0
    )
    blocks = rows(out / "blocks.csv")
    assert all(float(row["value"]) <= 1e-8 for row in blocks if row["metric"] == "log_norm"), "a gradient flow"
    assert "digits images" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.pt"], "there is no 'nothing.pt'"),
        (["USERS:plain", "--shape", "1,2,2"], "torchvision.models.ResNet"),
        (["USERS:net"], "give --dataset, or --shape"),
        (["USERS:net", "--shape", "3,8"], "channels,height,width, got '3,8'"),
        (["USERS:net", "--dataset", "nonsense"], "unknown --dataset 'nonsense'"),
        (["USERS:net", "--shape", "3,8,8", "--block", "7,0", "--images", "1"], "there is no block 7,0; choose from 0,0; 0,1"),
        (["USERS:net", "--shape", "3,8,8", "--scheme", "nonsense"], "unknown scheme"),
        (["USERS:net", "--shape", "3,8,8", "--images", "0"], "--images"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, users, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        map_spectra.main(
            [*(a.replace("USERS", str(users)) for a in arguments), "--device", "cpu", "--out", str(tmp_path / "out")]
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused(users, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(SystemExit):
        map_spectra.main([f"{users}:net", "--shape", "3,8,8", "--device", "cpu", "--out", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
