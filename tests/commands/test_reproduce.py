"""reproduce_ie_skips.py: what the protocol is, what a user may change, and the whole of it in its smallest size."""

import csv
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
from records import record

from experiments import reproduce_ie_skips as reproduce
from experiments.harness.command import Parser
from experiments.harness.options import add_arguments, make_config
from experiments.harness.run.forecast import passes


def options(*line, dataset="cifar10", training="adversarial", scale="gpu"):
    parser = Parser(prog="reproduce_ie_skips.py")
    add_arguments(parser)
    parser.set_defaults(**dict.fromkeys(reproduce._usual(reproduce.SCALES["smoke"], "digits", "natural")), scale=scale)
    own = reproduce._arguments(parser.parse_args([*line, "--no-download"]), dataset, training, reproduce.Path("out"))
    return make_config(own, "compare_schemes", (1,))


def test_the_protocol_is_the_authors():
    config = options()
    settings = config.settings
    assert config.schemes == ("explicit_euler", "ie_skip") and config.model == "resnet18"
    assert (settings.optimizer, settings.learning_rate, settings.weight_decay, settings.batch_size) == ("sgd", 0.1, 5e-4, 128)
    assert (settings.epochs, settings.schedule, settings.warmup_epochs, settings.clean_epochs) == (150, "multistep", 1, 1)
    assert (settings.training, settings.train_steps, settings.augment) == ("summed", 3, "rotated")
    assert settings.train_epsilon == pytest.approx(8 / 255) and settings.train_step_size == pytest.approx(2 / 255)
    assert settings.train_gradient == "detached"
    assert config.train_limit is None and config.test_limit is None


def test_the_steps_of_pgd_are_those_of_the_text():
    steps = {"pgd20": 20, "pgd(steps=100,relative_step=12.5)": 100}
    for name, count in steps.items():
        attack = reproduce.report.stability.get_attack(name)
        assert name in options().attacks
        assert attack.relative_step * (8 / 255) / count == pytest.approx(1 / 255)


def test_what_the_user_names_holds():
    config = options("--epochs", "3", "--train-gradient", "exact", "--epsilons", "0.02", "--seeds", "5", training="natural")
    assert (config.settings.epochs, config.settings.train_gradient, config.epsilons, config.seeds) == (
        3,
        "exact",
        (0.02,),
        (5,),
    )
    assert config.settings.training == "standard"


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("--scale tiny", "unknown --scale 'tiny'; choose from smoke, cpu, gpu"),
        ("--datasets digits,letters", "unknown --datasets 'letters'"),
        ("--trainings ,", "--trainings is empty; choose from natural, adversarial"),
        ("--dataset mnist", "--dataset stands for one; here it is --datasets"),
        ("--scale smoke --resume", "--resume needs --out"),
    ],
)
def test_bad_lines(line, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(line.split())
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_passes_of_attacks():
    assert passes("fgsm") == 1 and passes("pgd20", 2) == 40 and passes("apgd50-t") == 450
    assert passes("square300", 2) == pytest.approx(100)


def test_what_has_ended_is_not_timed_again(tmp_path, monkeypatch, capsys):
    timed, made = [], options("--seeds", "0,1", "--device", "cpu")
    forecast = SimpleNamespace(seconds=lambda workers: 60.0)
    monkeypatch.setattr(reproduce, "forecast", lambda config, cases: timed.append(len(cases)) or forecast)
    run = Namespace(out=tmp_path, cluster=None, gpus_per_case=None, device="cpu")
    reproduce._foretell(reproduce.Console(), [run], [made])
    assert timed.pop() == 4 and f"{tmp_path.name}: 4 nets, about 1 min on " in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(made.to_json()))
    ended = [json.dumps(record(scheme, seed).to_json()) + "\n" for scheme in made.schemes for seed in made.seeds]
    for lines, left in ((ended[:3], [1]), (ended, [])):
        (tmp_path / "records.jsonl").write_text("".join(lines))
        reproduce._foretell(reproduce.Console(), [run], [made])
        assert timed == left
        timed.clear()
    assert "1 net, about" in capsys.readouterr().out


@pytest.mark.slow
def test_the_smallest_run_goes_on_where_it_ended(tmp_path, capsys):
    line = ["--scale", "smoke", "--out", str(tmp_path)]
    assert reproduce.main(line) == 0
    first = (tmp_path / "reproduction.csv").read_bytes()
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert len(rows) == 12 and {row["net"] for row in rows} == {"ResNet", "IE-ResNet"}
    said = capsys.readouterr().out
    assert "digits-natural: 2 nets, about" in said and "No figure" not in said
    assert reproduce.main([*line, "--resume"]) == 0
    assert (tmp_path / "reproduction.csv").read_bytes() == first and "2 of 2 cases are already there" in capsys.readouterr().out
