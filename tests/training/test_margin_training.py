"""Certified training: the margin loss, steps held at their limit meanwhile, and what is proven at the end."""

import math

import pytest
import torch
from torch.nn import functional as F

import odenets
import stability
from experiments.harness.training import data, losses
from experiments.harness.training import loop as training
from experiments.harness.training.settings import TrainingSettings

MARGIN = TrainingSettings(
    training="margin", epochs=3, batch_size=32, margin_offset=0.5, margin_temperature=0.5, weight_decay=0.0, select="last"
)


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits", None)
    return data.Data("digits", 10, whole.train.first(256), whole.held_out.first(64), whole.test.first(64))


def network(scheme="explicit", field="gradient_flow", **sizes):
    torch.manual_seed(0)
    return odenets.certifiable_small(size=8, width=8, scheme=scheme, field=field, **{"depths": (1, 1), **sizes})


def test_the_loss_is_that_of_logits_lowered_and_cooled():
    logits, y = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    loss = losses.METHODS["margin"](lambda x: logits, None, y, MARGIN, None, {})
    lowered = logits.clone()
    for i in range(6):
        lowered[i, y[i]] -= math.sqrt(2) * 0.5
    torch.testing.assert_close(loss, 0.5 * F.cross_entropy(lowered / 0.5, y))


@pytest.mark.parametrize("scheme, field", [("explicit", "gradient_flow"), ("splitting", "monotone")])
def test_a_net_that_margins_trained_is_at_its_limit_and_certified(digits, scheme, field):
    net = network(scheme, field)
    before = stability.certify(net, digits.test.images, digits.test.labels).radius.mean()
    trained = training.train(net, digits, MARGIN, 0)
    for stage in odenets.stages(net).values():
        for f in stage.fields:
            flow = getattr(f, "flow", f)
            assert flow.constants(2, stage.held_at).forward == pytest.approx(1.0, rel=1e-4)  # the limit is met, and kept
            assert flow.constants(2, stage.held_at).forward >= 1.0
    certificate = stability.certify(net, digits.test.images, digits.test.labels)
    assert certificate.radius.mean() > before + 0.02 and trained.history[-1].loss < trained.history[0].loss


def test_while_it_trains_the_estimate_is_near_the_limit(digits):
    net, vectors, random = network(), {}, torch.Generator().manual_seed(0)
    for _ in range(100):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.006 * torch.randn(parameter.shape, generator=random).sign())  # a step of Adam, at its largest
        odenets.hold(net, vectors)
    for stage in odenets.stages(net).values():
        # From below: the norm may be a little more than is thought, never much, and what is proven afterwards says so.
        assert 0.8 < stage.fields[0].constants(2, stage.held_at).forward < 1.01


def test_filters_that_rest_keep_their_weights():
    # An optimiser pushes the norm of eight filters up at each step; the others get no gradient.
    net, vectors = network(depths=(1,)), {}
    weight = net.stage0.fields[0].conv.weight
    before = weight.detach()[8:].norm().item()
    for _ in range(200):
        with torch.no_grad():
            weight[:8] += 0.006 * weight[:8].sign()
        odenets.hold(net, vectors)
    assert weight.detach()[8:].norm() > 0.1 * before  # of a kernel that is multiplied 1e-5 would be left


def test_nets_that_were_never_at_a_limit_are_left_alone():
    net = odenets.ode_resnet_small(field="gradient_flow")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    odenets.hold(net, {})
    odenets.prove_limits(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_rows_of_fields_monotone_in_L_infinity_are_held_at_the_explicit_limit():
    net = network("explicit", "inf_monotone", depths=(1,), p=math.inf)
    field = net.stage0.fields[0]
    with torch.no_grad():
        field.damping[:2] = torch.tensor([3.0, 0.01])
    small = field.moduli()[1].item()
    odenets.hold(net, {})
    assert field.moduli().max().item() == pytest.approx(1.0, rel=1e-4)
    assert field.moduli()[1].item() == pytest.approx(small)  # what is below the limit stays
    certificate = stability.certify(net, torch.rand(2, 1, 8, 8), norm=stability.Linf)
    assert certificate.budget.factor == pytest.approx(1.0)
    net.head.free.data.mul_(3)
    assert net.head.weight.abs().sum(1).detach().numpy() == pytest.approx(1.0)


def test_the_net_for_cifar10_is_of_a_few_million_parameters():
    torch.manual_seed(0)
    net = odenets.certifiable_cifar10(scheme="implicit_midpoint")  # no norm to prove: built in no time
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_332_298
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 10)
