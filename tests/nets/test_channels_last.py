import copy

import pytest
import torch

import odenets
import stability
from odenets.nets.fields import basic_layers
from odenets.nets.resnet import ODEResNet

pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 14), reason="PyTorch 2.11 crashes in backward passes"
)
SOLVING = "implicit(tol=1e-9,max_iterations=200)"


def _pair(scheme="explicit", field="residual", **settings):
    """A small net in float64, and a copy of it with channels last."""
    torch.manual_seed(0)
    net = ODEResNet(basic_layers, (2, 2), (4, 8), 5, 3, scheme, field=field, stem_width=4, **settings).double().eval()
    other = copy.deepcopy(net)
    odenets.channels_last(other)
    return net, other


@pytest.fixture
def images(generator):
    return torch.rand(4, 3, 8, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scheme", odenets.list_schemes())
def test_the_same_values_and_gradients(scheme, images):
    tight = ",".join(f"{key}={value}" for key, value in {"tol": "1e-10", "max_iterations": 200}.items())
    spec = f"{scheme}({tight})" if odenets.get_scheme(scheme).solves else scheme
    net, other = _pair(spec, substeps=2)
    found = []
    for one in (net, other):
        x = images.clone().requires_grad_()
        logits = one(x)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), [x, *one.parameters()])))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-8)


def test_fields_see_their_states_in_that_order_and_schemes_rows_that_are_views(images):
    _, net = _pair(SOLVING)
    seen = []
    stage = net.blocks[0]
    stage.fields[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    start = net.stem(images)
    path = stage(start, trajectory=True)
    assert len(seen) > 3 and all(y.shape[1:] == start.shape[1:] for y in seen)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen)
    assert path.shape == (1 + len(stage.fields), *start.shape) and torch.equal(path[0], start)
    assert torch.equal(path[-1], stage(start)) and stage.stats.converged.all()


def test_it_can_be_taken_back_copied_and_loaded(images, tmp_path):
    net, other = _pair(SOLVING)
    assert all(stage.channels_last for stage in odenets.stages(copy.deepcopy(other)).values())
    torch.save(other.state_dict(), tmp_path / "net.pt")
    net.load_state_dict(torch.load(tmp_path / "net.pt"))
    assert torch.equal(net(images), _pair(SOLVING)[0](images))
    odenets.channels_last(other, False)
    assert torch.equal(other(images), net(images))


def test_states_that_are_no_images_are_as_they_were(generator):
    stage = odenets.ODEStage([torch.nn.Identity()], "rk4")
    stage.fields[0].forward = lambda t, y: -y
    odenets.channels_last(stage)
    for shape in ((3,), (3, 5), (3, 4, 5)):
        y = torch.randn(shape, generator=generator)
        torch.testing.assert_close(stage(y), y * (1 - 1 + 1 / 2 - 1 / 6 + 1 / 24))


def test_every_instrument_takes_such_states(images):
    (net, other), images = _pair(SOLVING), images[:2]
    labels = net(images).argmax(1)
    found = []
    for one in (net, other):
        stage, start = one.blocks[0], one.stem(images).detach()
        J = stability.jacobian(stage, start[:1])
        warm, indices = odenets.WarmStart(one), torch.arange(len(images))
        warm(images, indices)
        attacked = stability.pgd(one, images, labels, stability.Linf(0.05), steps=2)
        judged = stability.worst_case(
            one, images, labels, stability.Linf(0.05), [("pgd", lambda net, x, y, at=attacked: at)], stability.cold_judge(one)
        )
        found.append(
            {
                "spectrum": stability.spectrum(stage, start, k=2).values.abs(),
                "log_norm": stability.log_norm(stage, start),
                "product": torch.as_tensor(J @ torch.ones(J.shape[1], dtype=torch.float64).numpy()),
                "adjoint": torch.as_tensor(J.rmatvec(torch.ones(J.shape[1], dtype=torch.float64).numpy())),
                "warm": warm(images + 1e-3, indices),
                "growth": stability.stage_exponents(one, images)[1].values,
                "attacked": attacked,
                "robust": judged.robust,
            }
        )
    for name, mine in found[0].items():
        torch.testing.assert_close(found[1][name], mine, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.slow
def test_the_audit_and_a_converted_net(images):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).double().eval()
    net = odenets.convert(copy.deepcopy(model), "heun")
    expected = net(images)
    odenets.channels_last(net)
    torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)
    _, other = _pair("implicit(tol=1e-6,max_iterations=100)")
    audit = stability.audit(other, images, other(images).argmax(1), stability.Linf(0.02))
    assert {check.name: check.passed for check in audit.checks}["exact_gradient"] is not False
