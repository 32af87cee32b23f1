import pytest
import torch

import odenets


# Counted in the authors' networks; the same for every scheme, since a scheme has no parameters.
@pytest.mark.parametrize(
    ("build", "parameters", "integrated"),
    [(odenets.ode_resnet18, 787_290, 5), (odenets.ode_resnet34, 1_420_442, 13), (odenets.ode_resnet50, 2_867_674, 12)],
)
def test_the_papers_networks(build, parameters, integrated, device):
    for scheme in ("explicit", "ie_skip"):
        net = build(num_classes=10, in_channels=3, scheme=scheme, substeps=1).to(device).eval()
        assert sum(p.numel() for p in net.parameters()) == parameters
        assert sum(len(stage.fields) for stage in odenets.stages(net).values()) == integrated
        assert not any(isinstance(m, torch.nn.Conv2d) and m.bias is not None for m in net.modules())
        with torch.no_grad():
            assert net(torch.rand(2, 3, 32, 32, device=device)).shape == (2, 10)


def test_an_implicit_network_solves_every_block(device):
    torch.manual_seed(0)
    net = odenets.ode_resnet18(in_channels=1, scheme="implicit").to(device).eval()
    with torch.no_grad():
        net(torch.rand(4, 1, 28, 28, device=device))
    assert odenets.converged(net).all()
    assert sum(stage.stats.solves for stage in odenets.stages(net).values()) == 5


def test_models_take_the_same_arguments():
    for build in odenets.MODELS.values():
        net = build(num_classes=7, in_channels=2, scheme="heun", substeps=2)
        assert net.head[-1].out_features == 7 and net.stem[0].in_channels == 2


def test_a_stem_of_stride_2_quarters_the_states(device):
    nets = [build(in_channels=3).to(device) for build in (odenets.ode_resnet_small, odenets.ode_resnet_small_stride2)]
    x = torch.rand(2, 3, 32, 32, device=device)
    assert [tuple(net.stem(x).shape) for net in nets] == [(2, 16, 32, 32), (2, 16, 16, 16)]
    assert len({sum(p.numel() for p in net.parameters()) for net in nets}) == 1 and nets[1](x).shape == (2, 10)


# Of the fields, for 10 classes and 3 channels; gradient flow is sized to meet the paper's block, bottlenecks have no equal.
@pytest.mark.parametrize(
    ("field", "small", "resnet50"),
    [
        ("residual", 65_882, 2_867_674),
        ("damped", 65_882, 2_867_674),
        ("antisymmetric", 42_554, 3_941_850),
        ("gradient_flow", 65_690, 3_939_738),
    ],
)
def test_parameters_of_each_field(field, small, resnet50):
    for name, expected in (("small", small), ("resnet50", resnet50)):
        assert sum(p.numel() for p in odenets.MODELS[name](num_classes=10, in_channels=3, field=field).parameters()) == expected


def test_the_default_field_changes_neither_names_nor_weights():
    nets = []
    for settings in ({}, {"field": "residual"}, {"field": "damped(rate=0.1)"}):
        torch.manual_seed(0)
        nets.append(odenets.ode_resnet_small(**settings).state_dict())
    assert "blocks.0.fields.0.layers.2.weight" in nets[0]
    assert all(net.keys() == nets[0].keys() and all(torch.equal(net[key], nets[0][key]) for key in net) for net in nets)


@pytest.mark.parametrize("field", odenets.list_fields())
@pytest.mark.parametrize("scheme", ["explicit", "implicit(tol=1e-6)"])
def test_every_field_in_a_network_has_gradients(field, scheme):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(field=field, scheme=scheme)
    net(torch.rand(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert odenets.converged(net) is None or odenets.converged(net).all()
