"""Embedded pairs and the adaptive scheme made of them: proved as data, and against torchdiffeq as the reference."""

import dataclasses

import pytest
import torch
from torchdiffeq import odeint
from torchdiffeq._impl import adaptive_heun, bosh3, dopri5, fehlberg2

import odenets
from odenets.schemes.embedded import PAIRS

REFERENCE = {
    "dopri5": dopri5._DORMAND_PRINCE_SHAMPINE_TABLEAU,
    "bosh3": bosh3._BOGACKI_SHAMPINE_TABLEAU,
    "fehlberg2": fehlberg2._FEHLBERG2_TABLEAU,
    "adaptive_heun": adaptive_heun._ADAPTIVE_HEUN_TABLEAU,
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_error_is_that_of_the_reference(name):
    """Up to a factor: Shampine's variant of dopri5 takes two thirds of the estimate, and signs are a matter of taste."""
    ours, theirs = torch.tensor(PAIRS[name].error, dtype=torch.float64), REFERENCE[name].c_error
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0).abs() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name, pair in PAIRS.items() for index in range(len(pair.embedded))]
)
def test_a_mistyped_weight_is_refused(name, index):
    weights = list(PAIRS[name].embedded)
    weights[index] += 1e-6
    with pytest.raises(odenets.InputError, match="miss order"):
        dataclasses.replace(PAIRS[name], embedded=tuple(weights))


def test_a_pair_of_two_equal_methods_estimates_nothing_and_is_refused():
    with pytest.raises(odenets.InputError, match="more than order"):
        dataclasses.replace(PAIRS["adaptive_heun"], embedded=(0.5, 0.5))


def field(t, y):
    return y**2 * torch.cos(torch.as_tensor(t, dtype=y.dtype, device=y.device))


@pytest.mark.parametrize("name", PAIRS)
def test_it_reaches_what_torchdiffeq_reaches(name, device):
    y = torch.linspace(0.1, 0.5, 5, dtype=torch.float64, device=device)[:, None]
    exact = y / (1 - y * torch.sin(torch.tensor(1.5, dtype=torch.float64)))
    stage = odenets.ODEStage(field, f"adaptive(method={name},rtol=1e-6,atol=1e-8)", interval=1.5)
    times = torch.tensor([0.0, 1.5], dtype=torch.float64, device=device)
    theirs = torch.cat([odeint(field, part, times, method=name, rtol=1e-6, atol=1e-8)[-1] for part in y.split(1)])
    ours = stage(y)
    assert (ours - exact).abs().max() < 1e-4 and (ours - exact).abs().max() < 3 * (theirs - exact).abs().max() + 1e-7
    steps = [len(entry.sizes) for entry in stage.stats.accepted]
    assert steps[0] <= steps[-1] and all(sum(entry.sizes) == pytest.approx(1.5) for entry in stage.stats.accepted)


def test_samples_are_independent_and_the_batch_only_where_it_is_coupled(device):
    y = torch.tensor([[0.1], [0.9], [0.4]], dtype=torch.float64, device=device)
    stage = odenets.ODEStage(lambda t, y: -30 * y**3, "adaptive(rtol=1e-4,atol=1e-6)")
    assert torch.equal(stage(y)[2:], stage(y[2:])) and torch.equal(stage(y.flip(0)).flip(0), stage(y))
    odenets.set_scheme(stage, "adaptive(rtol=1e-4,atol=1e-6,coupled=true)")
    assert not torch.equal(stage(y)[2:], stage(y[2:])) and len(stage.stats.accepted) == 1


def test_an_autonomous_field_is_asked_for_all_samples_at_once(device):
    calls = []

    class Field(torch.nn.Module):
        autonomous = True

        def forward(self, t, y):
            calls.append(len(y))
            return -y

    y = torch.rand(6, 3, dtype=torch.float64, device=device)
    out = odenets.ODEStage(Field(), "adaptive(rtol=1e-8,atol=1e-10)")(y)
    assert torch.allclose(out, y * torch.exp(torch.tensor(-1.0, dtype=torch.float64)), rtol=1e-6) and max(calls) == 6


def test_a_field_that_vmap_refuses_is_told_what_to_say():
    def branching(t, y):
        return -y if float(t) < 2 else y

    with pytest.raises(odenets.InputError, match="autonomous = True.*coupled=true"):
        odenets.ODEStage(branching, "adaptive")(torch.rand(2, 3))
    assert odenets.ODEStage(branching, "adaptive(coupled=true)")(torch.rand(2, 3)).shape == (2, 3)


def test_what_an_explicit_pair_cannot_do_is_said():
    with pytest.raises(odenets.InputError, match="below rounding.*implicit scheme"):
        odenets.ODEStage(lambda t, y: y / 0.0, "adaptive")(torch.ones(1, 2))


def test_dopri8_runs_in_torchdiffeq_and_refuses_transforms():
    stage, y = odenets.ODEStage(lambda t, y: -y, "adaptive(method=dopri8,rtol=1e-8,atol=1e-9)"), torch.rand(2, 3).double()
    assert torch.allclose(stage(y), y * torch.exp(torch.tensor(-1.0, dtype=torch.float64)), rtol=1e-4)
    with pytest.raises(odenets.InputError, match="dopri8.*no rules for torch.func"):
        torch.func.jvp(stage, (y,), (y,))
