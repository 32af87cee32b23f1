"""ResNets of timm as ODE networks, by name and by `convert`."""

import pytest
import torch

import odenets

timm = pytest.importorskip("timm", reason="the extra timm is not installed")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3, pretrained=False).eval()


def test_explicit_euler_is_timms_network(net):
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(odenets.convert(net)(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "seresnet18"])
def test_blocks_are_integrated_and_gradients_agree(name):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3, pretrained=False, zero_init_last=False).eval()
    converted, x = odenets.convert(net, "explicit"), torch.rand(2, 3, 32, 32)
    assert len(odenets.stages(converted)) >= 3
    grads = []
    for each in (net, converted):
        net.zero_grad()
        each(x).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    odenets.set_scheme(converted, "heun", substeps=2)
    assert not torch.allclose(converted(x), net(x), rtol=1e-3)


def test_a_spec_fits_classes_and_channels():
    torch.manual_seed(0)
    net = odenets.get_model("timm.models.resnet:resnet18").build(5, 1, "implicit(tol=1e-2)")
    assert net(torch.rand(1, 1, 32, 32)).shape == (1, 5)
