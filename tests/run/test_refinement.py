"""A net at finer steps against the flow of its fields."""

import pytest
import torch
from torch import nn

import odenets
from experiments.harness.run.measure import measure_refinement
from experiments.harness.statistics.convergence import slope


class Field(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.linear, self.activation = nn.Linear(6, 6), activation

    def forward(self, t, y):
        return 1.5 * self.activation(self.linear(y)) - 0.3 * y


def net_of(scheme, activation=torch.tanh):
    torch.manual_seed(0)
    fields = [Field(activation), Field(activation)]
    return nn.Sequential(nn.Flatten(), odenets.ODEStage(fields, scheme), nn.Linear(6, 3))


@pytest.mark.parametrize("scheme", ["explicit", "midpoint", "rk4", "implicit", "trapezoid"])
def test_smooth_fields_show_the_order_of_the_scheme(scheme):
    net = net_of(scheme)
    found = measure_refinement(net, torch.rand(8, 1, 2, 3))
    order = odenets.get_scheme(scheme).order
    assert slope(found.steps, found.errors, found.uncertain) == pytest.approx(order, abs=0.2)
    assert found.steps == (1, 2, 4, 8, 16, 32) and next(net.parameters()).dtype == torch.float32
    (stage,) = odenets.stages(net).values()
    assert (str(stage.scheme), stage.substeps) == (str(odenets.get_scheme(scheme)), 1), "the net itself is left as it was"


def test_the_history_of_a_multistep_scheme_crosses_from_block_to_block():
    """At the jump between two fields the last step's slope is that of another field: an error of one step's size."""
    found = measure_refinement(net_of("ab2"), torch.rand(8, 1, 2, 3))
    assert slope(found.steps, found.errors, found.uncertain) == pytest.approx(1, abs=0.2)


def test_kinks_bound_the_order_by_two():
    found = measure_refinement(net_of("rk4", torch.relu), torch.rand(32, 1, 2, 3))
    assert 1.5 < slope(found.steps, found.errors, found.uncertain) < 3


def test_what_chooses_its_own_steps_is_not_refined():
    assert measure_refinement(net_of("adaptive"), torch.rand(2, 1, 2, 3)) is None
