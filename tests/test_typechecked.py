import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import typechecked
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation

import odenets
from experiments.harness import statistics
from experiments.harness.report import arms
from odenets.types import PerSample, State

ROOT = Path(__file__).parent.parent


def test_the_libraries_are_checked():
    for function in (odenets.ODEStage.forward, odenets.set_scheme, odenets.ODEResNet.forward):
        assert hasattr(function, "__wrapped__"), function
    with pytest.raises(BeartypeCallHintParamViolation):
        odenets.ODEStage([lambda t, y: y])(torch.zeros(2, 3), trajectory="yes")


def test_the_statistics_are_checked():
    with pytest.raises(BeartypeCallHintParamViolation):
        statistics.wilson(1.5, 4)
    assert statistics.t_interval((0.0, 1.0)).n == 2  # what numpy makes an array of is for numpy to say


def test_the_pages_are_checked():
    """A comparison is of a run: what evaluate.py draws is given one."""
    with pytest.raises(BeartypeCallHintParamViolation):
        arms.Comparison({"schemes": ["heun"]}, ())


def test_shapes_are_checked_within_a_signature():
    @typechecked.checked
    def weighed(y: State, weights: PerSample) -> State:
        return y if weights[0] > 0 else y[:1]

    y = torch.zeros(3, 2, 2)
    assert weighed(y, torch.ones(3)).shape == y.shape
    for wrong in (torch.ones(2), torch.ones(3, 1), torch.ones(3, dtype=torch.int64), [1.0, 1.0, 1.0]):
        with pytest.raises(BeartypeCallHintParamViolation):
            weighed(y, wrong)
    with pytest.raises(BeartypeCallHintReturnViolation):
        weighed(y, torch.zeros(3))


def test_what_a_function_refuses_itself_keeps_its_words():
    with pytest.raises(odenets.InputError, match="cannot read the scheme 3"):
        odenets.get_scheme(3)


def test_without_the_checks_nothing_of_them_is_imported():
    program = """
        import sys, torch, odenets, stability
        assert "beartype" not in sys.modules
        stage = odenets.ODEStage([odenets.fields.Block(odenets.fields.basic_layers, 4)], "rk4")
        y = torch.randn(2, 4, 6, 6)
        compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(y), stage(y))
        torch.export.export(stage, (y,))
        torch.func.jvp(stage, (y,), (y,))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=ROOT, timeout=300)
