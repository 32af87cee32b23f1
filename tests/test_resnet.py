import pytest
import torch

import odenets


# Counted in the authors' networks; the same for every scheme, since a scheme has no parameters.
@pytest.mark.parametrize(("build", "parameters", "integrated"), [(odenets.ode_resnet18, 787_290, 5), (odenets.ode_resnet34, 1_420_442, 13),
                                                                  (odenets.ode_resnet50, 2_867_674, 12)])
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
