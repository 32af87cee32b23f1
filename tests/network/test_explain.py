"""Explanations: the figures are right, the advice works, and each kind of failure gets its own."""

import re
from pathlib import Path

import pytest
import torch

import odenets
import stability
from experiments.harness.run import measure as evaluation
from experiments.harness.training import data
from experiments.harness.training import loop as training


def diagonal(*values):
    M = torch.diag(torch.tensor(values, dtype=torch.float64))
    return lambda t, y: y @ M


Y = torch.ones(2, 3, dtype=torch.float64)


def test_a_step_that_is_too_long_says_how_many_would_do():
    stage = odenets.ODEStage([diagonal(-1.0, -0.5, -0.2), diagonal(-58.0, -1.0, -0.2)], "explicit")
    found = stability.explain(stage, Y)
    assert (found.stage, found.block) == (0, 1) and found.amplification == pytest.approx(57)
    assert (found.rightmost, found.largest, found.lipschitz) == pytest.approx((-0.2, -58, 58))
    assert found.largest_step == pytest.approx(2 / 58, rel=1e-6) and found.broken is None and found.unsolved is None
    text = str(found)
    assert "Stage 0, block 1 (explicit_euler, h = 1): max |R(h\u03bb)| = 57, rightmost h\u03bb = -0.2" in text
    assert "largest stable h = 0.034" in text and "A-stable scheme" in text and "no scheme helps" not in text
    substeps = int(re.search(r"try (\d+) substeps instead of 1", text)[1])
    assert substeps == 29
    stage.configure(substeps=substeps)
    assert stability.explain(stage, Y).amplification <= 1 + 1e-12
    stage.configure(substeps=substeps - 1)
    assert stability.explain(stage, Y).amplification > 1.01
    stage.configure(scheme="implicit", substeps=1)
    assert "Nothing grows by its eigenvalues" in str(stability.explain(stage, Y))


def test_where_the_flow_expands_no_scheme_helps_and_the_rate_named_does():
    field = diagonal(0.73, -1.0, -0.2)
    for scheme in ("explicit", "implicit(tol=1e-8)", "adaptive", "ab2"):
        text = str(stability.explain(odenets.ODEStage([field] * 3, scheme), Y))
        assert "no scheme helps there" in text and "gradient_flow" in text, text
        # At rate 0.8 a contracting mode lies at -1.8, outside of the region of ab2 alone.
        assert ("substeps" in text) == (scheme == "ab2") and "allow" not in text, text
    assert "no R(z)" in str(stability.explain(odenets.ODEStage(field, "adaptive"), Y))
    rate = float(re.search(r"damped\(rate=([0-9.]+)\)", text)[1])
    assert rate == 0.8
    damped = odenets.ODEStage(lambda t, y: field(t, y) - rate * y, "implicit")
    assert "no scheme helps" not in str(stability.explain(damped, Y))


def test_unsolved_equations_are_counted_and_shorter_steps_solve_them():
    torch.manual_seed(0)
    field = odenets.get_field("residual").build(odenets.fields.basic_layers, 4).double()
    stage = odenets.ODEStage(field, "implicit(max_iterations=12)")
    with torch.no_grad():
        for p in stage.parameters():
            p.mul_(2.0)
    y = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = stability.explain(stage, y)
    assert found.unsolved > 0 and f"{100 * found.unsolved:.0f} % of the images leave an equation unsolved" in str(found)
    substeps = int(re.search(r"Equations.*try (\d+) substeps", str(found))[1])
    stage.configure(substeps=substeps)
    assert not stability.explain(stage, y).unsolved


def test_nan_on_the_way_is_located():
    def explosive(t, y):
        return -y + (1e200 * (y + 1)) ** 2

    text = str(stability.explain(odenets.ODEStage([diagonal(-3.0, -1, -1), explosive, explosive], "explicit"), Y))
    assert text.startswith("NaN or Inf appears in stage 0, block 1. Stage 0, block 0 (explicit_euler, h = 1): ")
    net = torch.nn.Sequential(odenets.ODEStage(diagonal(-1.0, -1, -1)), torch.nn.Linear(3, 3).double())
    with torch.no_grad():
        net[1].weight.fill_(torch.inf)
    assert "behind the last block" in str(stability.explain(net, Y)) and "layers between" in str(stability.explain(net, Y))
    net = odenets.ode_resnet_small()
    with torch.no_grad():
        net.stem[0].weight.fill_(torch.nan)
    found = stability.explain(net, torch.rand(2, 1, 8, 8))
    assert found.stage is None and "before the first block" in str(found) and "learning rate" in str(found)


@pytest.mark.no_pretend
def test_a_float32_network_with_images(device):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="implicit").to(device)
    found = stability.explain(net, torch.rand(3, 1, 8, 8, device=device))
    assert found.broken is None and found.unsolved == 0 and found.amplification > 1 and "h = 1" in str(found)


def test_a_training_that_diverges_explains_itself():
    torch.manual_seed(0)
    net, x = odenets.ode_resnet_small(), torch.rand(8, 1, 8, 8)
    text = training._divergence(net, x, float("nan"), 1.0, 3)
    assert text.startswith("training diverged: the loss is nan") and "in epoch 3; lower --learning-rate. Stage " in text
    assert "max |R(h\u03bb)|" in text
    assert "no explanation" in training._divergence(net, x / 0, float("nan"), 1.0, 3)


def test_the_report_says_why_equations_stay_unsolved():
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme="implicit(max_iterations=1)").eval()
    split = data.Split(torch.rand(12, 1, 8, 8), torch.zeros(12, dtype=torch.int64))
    text = evaluation.explain_unsolved(net, split)
    assert text.startswith("12 of 12 images leave an equation unsolved. Stage ") and "max_iterations" in text
    assert "%" not in text.split(".")[0]
    odenets.set_scheme(net, "implicit(max_iterations=200)")
    assert evaluation.explain_unsolved(net, split) is None
    odenets.set_scheme(net, "explicit")
    assert evaluation.explain_unsolved(net, split) is None


def test_the_example_of_the_documentation(capsys):
    text = (Path(__file__).parents[2] / "docs/dynamics.md").read_text(encoding="utf-8")
    exec(compile(re.search("```python\n(.*?)```", text, re.S)[1], "docs/dynamics.md", "exec"), {})
    assert "max |R(h\u03bb)|" in capsys.readouterr().out


def test_bad_input():
    with pytest.raises(ValueError, match="no ODEStage"):
        stability.explain(torch.nn.Identity(), Y)
    with pytest.raises(ValueError, match="NaN or Inf"):
        stability.explain(odenets.ODEStage(diagonal(1.0, 1, 1)), Y / 0)


def test_the_number_of_substeps_bounds_growth_over_the_block_not_over_a_step():
    M = torch.tensor([[-1e-3, 0.3, 0], [-0.3, -1e-3, 0], [0, 0, -0.5]], dtype=torch.float64)
    stage = odenets.ODEStage(lambda t, y: y @ M, "explicit")
    substeps = int(re.search(r"try (\d+) substeps", str(stability.explain(stage, Y)))[1])
    growth = [
        stability.explain(odenets.ODEStage(lambda t, y: y @ M, substeps=n), Y).amplification ** n
        for n in (substeps - 1, substeps)
    ]
    assert growth[1] <= 1.01 < growth[0]
