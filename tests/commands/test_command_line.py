"""Command lines: what becomes of the options, and every kind of bad input."""

import dataclasses
import importlib
import re
import shlex

import pytest
import torch

from experiments import compare_schemes
from experiments.harness import command as options
from experiments.harness.command import Parser
from experiments.harness.options import add_arguments, make_config
from experiments.harness.run.case import Case
from experiments.harness.run.config import RunConfig
from experiments.harness.training.settings import TrainingSettings
from odenets.errors import Divergence, InputError, MissingExtra, Unsolved

SCRIPTS = [
    "compare_schemes",
    "sweep_steps",
    "relate",
    "evaluate",
    "map_spectra",
    "plot_regions",
    "compare_solvers",
    "share",
    "reproduce_ie_skips",
    "certify",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_examples_whose_options_it_explains(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"experiments.{name}").main(["--help"])
    said, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert stopped.value.code == 0 and len(lines) == 3 and all("python experiments/" in line for line in lines)
    for line in [line for line in lines if f"/{name}.py " in line]:
        assert all(f"  {word}" in said for word in shlex.split(line) if word.startswith("--"))


def test_help_of_a_comparison_is_in_sections_and_says_each_option_once(capsys):
    with pytest.raises(SystemExit):
        compare_schemes.main(["--help"])
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    sections = (options.COMPARED, options.DATA, options.TRAINING, options.SEEDS, options.ATTACKS, options.RUN)
    assert titles == ["options:", *(f"{title}:" for title in sections), "examples:"]
    names = re.findall(r"^  (--[\w-]+)", said, flags=re.M)
    assert len(names) == len(set(names)) > 40
    between = said.split("\ntraining:")[1].split("\nseeds, time")[0]
    wanted = {"--" + known.name.replace("_", "-") for known in dataclasses.fields(TrainingSettings) if known.metadata}
    assert wanted == set(re.findall(r"^  (--[\w-]+)", between, flags=re.M))


BAD = [
    (["--schemes", "explicit,magic"], "unknown scheme 'magic'; choose from explicit, implicit"),
    (["--schemes", "ie_skip(gama=0.1)"], "unknown parameter 'gama'"),
    (["--schemes", "ie_skip(gamma=0)"], "gamma must be positive and finite, got 0.0"),
    (["--schemes", ""], "--schemes is empty"),
    (["--schemes", "explicit,euler"], "scheme 'euler' stands twice"),
    (["--schemes", "explicit", "--substeps", "0"], "--substeps must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--substeps", "1,2"], "sweep_steps.py"),
    (["--schemes", "explicit", "--epsilons", "-0.1"], "--epsilons must be finite and at least 0, got -0.1"),
    (["--schemes", "explicit", "--epsilons", "nan"], "--epsilons"),
    (["--schemes", "explicit", "--epsilons", "a"], "--epsilons takes numbers"),
    (["--schemes", "explicit", "--warmup-epochs", "1"], "--warmup-epochs 1 needs a --schedule of cosine, multistep"),
    (["--schemes", "explicit", "--epsilons", "8/0"], "--epsilons takes numbers"),
    (["--schemes", "explicit", "--seeds", ","], "--seeds is empty"),
    (["--schemes", "explicit", "--seeds", "0,0"], "--seeds names 0 twice"),
    (["--schemes", "explicit", "--attacks", "pgf"], "unknown attack 'pgf'"),
    (["--schemes", "explicit", "--seeds", str(2**63)], "--seeds must be below 2^63"),
    (["--schemes", "explicit", "--threat", "l1"], "unknown --threat 'l1'; choose from linf, l2"),
    (["--schemes", "explicit", "--attacks", ""], "--attacks is empty"),
    (["--schemes", "explicit", "--dataset", "imagenet"], "unknown --dataset 'imagenet'; choose from digits, mnist"),
    (["--schemes", "explicit", "--model", "vgg"], "unknown --model 'vgg'; choose from small, small-stride2, resnet18"),
    (["--schemes", "explicit", "--training", "magic"], "unknown --training 'magic'; choose from standard"),
    (["--schemes", "explicit", "--optimizer", "adam"], "unknown --optimizer 'adam'; choose from adamw, sgd"),
    (["--schemes", "explicit", "--schedule", "step"], "unknown --schedule 'step'; choose from one-cycle, cosine, multistep"),
    (["--schemes", "explicit", "--select", "first"], "unknown --select 'first'; choose from best, last"),
    (["--schemes", "explicit", "--augment", "all"], "unknown --augment 'all'; choose from none, standard"),
    (["--schemes", "explicit", "--precision", "half"], "unknown --precision 'half'; choose from float32, tf32, bfloat16"),
    (["--schemes", "explicit", "--free-replays", "0"], "--free-replays must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--trades-beta", "nan"], "--trades-beta must be finite and at least 0, got nan"),
    (["--schemes", "explicit", "--train-epsilon", "-1"], "--train-epsilon must be finite and at least 0, got -1"),
    (["--schemes", "explicit", "--learning-rate", "0"], "--learning-rate must be finite and at least 1e-08, got 0"),
    (["--schemes", "explicit", "--weight-decay", "1,2"], "--weight-decay takes one number, got '1,2'"),
    (["--schemes", "explicit", "--checkpoint-seconds", "-1"], "--checkpoint-seconds must be finite and at least 0, got -1"),
    (["--schemes", "explicit", "--dataset", "mnist", "--data-dir", "/nowhere", "--no-download"], "no mnist files in /nowhere"),
    (["--schemes", "explicit", "--device", "tpu"], "unknown device 'tpu'"),
    (["--schemes", "explicit", "--device", "cpu:x"], "unknown device 'cpu:x'"),
    (["--schemes", "explicit", "--resume"], "--resume needs --out"),
    (["--schemes", "explicit", "--out", ""], "--out is empty"),
    (["--schemes", "explicit", "--epochs", "0"], "--epochs must be finite and at least 1, got 0"),
    (["--schemes", "explicit", "--scheme", "rk4"], "unrecognized arguments"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=lambda value: " ".join(value)[:60] * (type(value) is list))
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, capsys):
    out = [] if {"--resume", "--out"} & {*arguments} else ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main([*arguments, *out])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_asked_for_and_absent(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--device", "cuda", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2 and "finds no CUDA here; choose auto or cpu" in capsys.readouterr().err


def test_an_unwritable_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SystemExit) as stopped:
        compare_schemes.main(["--schemes", "explicit", "--smoke", "--out", str(tmp_path / "file" / "run")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "file/run" in error and "Traceback" not in error


def config(*options):
    parser = Parser("test")
    add_arguments(parser)
    return make_config(parser.parse_args(["--schemes", "explicit", *options]), "test", [1]).to_json()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"threat": "linf", "epsilons": [0.05, 0.1, 0.15], "attacks": ["pgd20"], "audit_epsilon": 0.1}),
        ("--threat l2", {"threat": "l2", "epsilons": [0.25, 0.5, 1.0], "audit_epsilon": 0.5, "train_epsilon": 0.1}),
        ("--threat l2 --epsilons 2,3 --train-epsilon 0.2", {"epsilons": [2, 3], "audit_epsilon": 3, "train_epsilon": 0.2}),
        ("--epsilons 0.3", {"train_epsilon": 0.3}),
        ("--epsilons 8/255", {"epsilons": [8 / 255]}),
        ("--smoke", {"seeds": [0], "epochs": 1, "attacks": ["pgd2"], "test_limit": 24}),
        (
            "--smoke --seeds 3,4 --epochs 2 --attacks fgsm --test-limit 9",
            {"seeds": [3, 4], "epochs": 2, "attacks": ["fgsm"], "test_limit": 9, "train_limit": 128},
        ),
        ("--attacks fgsm,apgd50-t,fgsm", {"attacks": ["fgsm", "apgd50-t"]}),
    ],
)
def test_settings_of_attacks(given, expected):
    found = config(*given.split())
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"train_epsilon": 0.1, "optimizer": "adamw", "learning_rate": 6e-3, "weight_decay": 0.01, "augment": "none"}),
        ("--train-epsilon 0", {"train_epsilon": 0}),
        ("--train-epsilon 0.3 --training fast", {"train_step_size": 0.375}),
        ("--training pgd", {"train_steps": 7, "train_step_size": 0.25 / 7}),
        ("--training pgd --train-steps 3", {"train_steps": 3}),
        ("--training summed --dataset cifar10 --train-epsilon 0.04", {"train_steps": 3, "train_step_size": 0.01}),
        ("--optimizer sgd --dataset cifar100", {"learning_rate": 0.1, "weight_decay": 5e-4, "augment": "standard"}),
        ("--optimizer sgd --weight-decay 0 --learning-rate 0.3", {"learning_rate": 0.3, "weight_decay": 0}),
        ("--dataset cifar10 --augment none", {"augment": "none"}),
        ("--stop-overfitting", {"stop_overfitting": True}),
    ],
)
def test_settings_of_training(given, expected):
    found = config(*given.split())
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    assert names <= found.keys() and None not in {found[name] for name in names}
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_defaults_on_the_command_line_are_those_of_training():
    assert RunConfig.from_json(config()).settings == TrainingSettings().resolved()


def test_case_names_are_file_names():
    schemes = ("ie_skip", "ie_skip(gamma=0.05,iterations=2)")
    names = {Case(scheme, substeps, 0).name for scheme in schemes for substeps in (1, 2)}
    assert len(names) == 4 and not any(set(name) & set("()/, ") for name in names)


def test_an_error_of_the_system_is_told_without_its_number(tmp_path, capsys):
    @options.run_cli
    def main(argv=None):
        open(tmp_path / "absent")

    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.endswith(f"{tmp_path / 'absent'}: No such file or directory\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("wrong"), 2),
        (Unsolved("wrong"), 2),
        (Divergence("wrong"), 2),
        (MissingExtra("wrong"), 2),
        (OSError("wrong"), 2),
        (ChildProcessError("wrong"), 2),
        (ValueError("wrong"), None),
        (RuntimeError("wrong"), None),
        (KeyError("wrong"), None),
        (AssertionError("wrong"), None),
    ],
)
def test_expected_errors_alone_become_a_sentence(error, code, capsys):
    @options.run_cli
    def main(argv=None):
        raise error

    with pytest.raises(BaseException) as stopped:
        main()
    if code is None:
        assert stopped.value is error and capsys.readouterr().err == "", "its traceback is Python's to print, exit code 1"
    else:
        assert isinstance(stopped.value, SystemExit) and stopped.value.code == code
        assert capsys.readouterr().err.endswith(": wrong\n")
