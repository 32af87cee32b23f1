"""certify.py: trained side by side, attacked, hunted, resumed; what is refused; radii that are too large would be noticed."""

import csv
import json
import re

import pytest
import torch

import odenets
import stability
from experiments import certify
from experiments.harness.run import certified, proofs
from experiments.harness.run.certified import Certified, Hunt, Line
from experiments.harness.run.schema import Measurement
from experiments.harness.training import data

SMALL = ["--fields", "gradient_flow", "--schemes", "explicit,midpoint", "--smoke", "--seconds", "1"]


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "HUNTED", 3)  # of four images that are hunted: two pieces
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "certify"
    assert certify.main(["--train", *SMALL, "--out", str(folder)]) == 0
    return folder


def test_a_run_leaves_its_page_its_tables_and_lines(run):
    rows = list(csv.DictReader((run / "certificates.csv").read_text().splitlines()))
    assert {row["attack"] for row in rows} == {"certified", "pgd2"} and {row["radius"] for row in rows} == {
        "0.0",
        "0.25",
        "0.5",
        "1.0",
    }
    # On the images that were attacked a certificate can only be below what attacks leave.
    lines = [Line.from_json(json.loads(line)) for line in (run / "records.jsonl").read_text().splitlines()]
    ((net,),) = (seeds.values() for seeds in certified.by_pair(lines).values())
    for radius in (0.25, 0.5, 1.0):
        attacked = net.attacked_at(radius)
        assert not (net.certified_at(radius, len(attacked)) & ~attacked).any()
    assert net.hunt.broken == net.hunt.abstained == 0 and net.training.parameters == 49_610
    page = (run / "report.html").read_text()
    assert "What cannot be broken" in page and "gradient_flow, midpoint is not trained" in page and "proven up to h = 0" in page
    tex = (run / "tables" / "certificates.tex").read_text()
    assert r"gradient\_flow, explicit\_euler" in tex and r"certified, \%" in tex
    assert (run / "figures" / "certificates.png").stat().st_size > 5000


def test_a_killed_run_goes_on_after_the_last_step(run, capsys):
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    assert [Line.from_json(json.loads(line)).step for line in lines[-2:]] == ["hunt 1 of 2", "hunt 2 of 2"]
    drop = re.compile(r'"seconds": [0-9.]+, ')
    for kept in (2, len(lines) - 1):  # after the certificate, and in the midst of a hunt
        (run / "records.jsonl").write_text("".join(lines[:kept]))
        assert certify.main(["--train", *SMALL, "--out", str(run), "--resume"]) == 0
        said = capsys.readouterr().out
        assert f"{len(lines) - kept} steps, on 12 test images of digits" in said or kept != 2
        assert said.count(" took ") == len(lines) - kept
        again = (run / "records.jsonl").read_text().splitlines(keepends=True)
        assert again[:kept] == lines[:kept] and [drop.sub("", line) for line in again] == [drop.sub("", line) for line in lines]


def test_a_checkpoint_is_certified_by_its_file(run, tmp_path):
    (checkpoint,) = run.glob("nets-*/checkpoints/*.pt")
    assert certify.main([str(checkpoint), "--smoke", "--radii", "0.3", "--out", str(tmp_path / "one")]) == 0
    rows = list(csv.DictReader((tmp_path / "one" / "certificates.csv").read_text().splitlines()))
    assert {row["pair"] for row in rows} == {"gradient_flow, explicit_euler"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "give networks to certify, or --train"),
        (["--train", "runs/x"], "give networks to certify, or --train"),
        (["--train", "--norm", "l1"], "unknown --norm 'l1'; choose from linf, l2"),
        (["--train", "--attacks", "nonsense"], "nonsense"),
        (["--train", "--smoke", "--schemes", "bdf2", "--fields", "gradient_flow"], "nothing is proven of any pair"),
        (["nowhere.pt"], "there is no 'nowhere.pt'"),
    ],
)
def test_bad_command_lines(given, sentence, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        certify.main([*given, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_a_hunt_notices_radii_that_are_too_large():
    torch.manual_seed(0)
    net = odenets.certifiable_small(size=8, width=8, depths=(1,), scheme="explicit", field="gradient_flow").eval()
    images = data.load("digits", None).test.first(12)
    predicted = stability.certify(net, images.images).predicted
    images = data.Split(images.images, predicted)  # untrained: its own classes are as good as any
    certificate = stability.certify(net, images.images, predicted)
    judge = proofs.certified_judge(certificate, 10)
    honest = proofs.hunt(net, judge, images, certificate.radius, "l2", ("pgd5-margin",))
    assert honest.broken == honest.abstained == 0 and honest.images == 12 and 0.79 < honest.nearest < 1
    assert proofs.hunt(net, judge, images, 30 * certificate.radius, "l2", ("pgd5-margin",)).broken > 0


def line(step, **found):
    return Line(network="a", step=step, pair="gradient_flow, explicit", seed=0, seconds=1.0, **found)


def test_lines_come_back_from_json():
    import numpy as np

    clean = Measurement.of("clean", 0.0, "exact", np.array([True, False, True]), 1)
    for given in (
        line("training", parameters=7, epochs=2),
        line("certificate", certified=Certified((0.5, 0.0, 0.25), clean, 0.7, 1.0)),
        line("hunt", hunt=Hunt(3, 1, 0, 0, 0.99)),
        line("attack", measurement=clean),
    ):
        assert Line.from_json(json.loads(json.dumps(given.to_json()))) == given
    with pytest.raises(ValueError, match="no line of certify.py"):
        Line.from_json({"network": "a"})
