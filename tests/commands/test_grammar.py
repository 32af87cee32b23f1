"""Every script names parts of a user's own by one grammar: a table of scripts and kinds."""

import shlex

import pytest

from experiments import (
    certify,
    compare_schemes,
    compare_solvers,
    evaluate,
    map_spectra,
    plot_regions,
    relate,
    reproduce_ie_skips,
    sweep_steps,
)

OWN = """
import torch, odenets
from torch import nn
def scheme(alpha=0.5): return odenets.get_scheme("heun")
def field(layers, channels, rate=1.0): return nn.Identity()
def model(num_classes, in_channels, width=8): return None
def network(width=8): return odenets.ode_resnet_small().eval()
def attack(net, x, y, threat, generator, indices, step=1.0): return x
def predictor(block, power=1.0): return block.log_norm
def images(count=40): return torch.zeros(40, 8, 8), [0, 1] * 20
"""
SCHEMES, FIELDS = "scheme: --schemes explicit,heun,rk4,{}", "field: --fields {}"
MODEL, DATA, ATTACK, PREDICTOR = (
    "model: --model {}",
    "data set: --dataset {}",
    "attack: --attacks {}",
    "predictor: --predictors {}",
)
RUNS = (SCHEMES, MODEL, ATTACK, PREDICTOR)
SHAPE = "own.py:network --shape 1,8,8"
TABLE = {
    compare_schemes: (*RUNS, DATA, FIELDS),
    sweep_steps: (*RUNS, DATA),
    relate: (
        SCHEMES,
        *(f"{part} --schemes explicit,heun,rk4,midpoint,implicit" for part in (MODEL, DATA, ATTACK, PREDICTOR, FIELDS)),
    ),
    reproduce_ie_skips: tuple(f"{part} --scale smoke" for part in RUNS),  # on the data sets of the paper
    evaluate: ("network: {} --dataset digits", f"{DATA} -- own.py:network", f"{ATTACK} --dataset digits -- own.py:network"),
    certify: ("network: {}", *(f"{part} --train --smoke" for part in (SCHEMES, FIELDS, MODEL, DATA, ATTACK))),
    map_spectra: ("network: {} --shape 1,8,8", f"scheme: {SHAPE} --scheme {{}}", f"predictor: {SHAPE} --predictors {{}}"),
    plot_regions: (SCHEMES,),
    compare_solvers: ("scheme: nowhere --roots --scheme {}",),
}
CASES = [(script, *part.split(": ", 1)) for script, parts in TABLE.items() for part in parts]
BAD = ("absent.py:X", "absent.module:X", "broken.py:X", "own.py:{}(beta=1)")


@pytest.mark.parametrize("spec", BAD)
@pytest.mark.parametrize(
    ("script", "kind", "line"), CASES, ids=[f"{script.__name__.split('.')[-1]} {kind}" for script, kind, _ in CASES]
)
def test_each_script_names_each_kind_alike(script, kind, line, spec, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def X(:\n")
    monkeypatch.chdir(tmp_path)
    spec = spec.format("images" if kind == "data set" else kind)
    before, _, rest = shlex.join(shlex.split(line.replace("{}", f"'{spec}'"))).partition(" -- ")
    out = [] if script is compare_solvers else ["--out", "out"]
    with pytest.raises(SystemExit) as stopped:
        script.main([*shlex.split(before), *out, *shlex.split(rest)])
    error = capsys.readouterr().err.strip()
    wanted = f"unknown parameter 'beta' in the {kind} 'own.py:" if "own.py" in spec else f"{spec} cannot be had: "
    assert stopped.value.code == 2 and wanted in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
