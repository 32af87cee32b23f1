import copy
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import odenets
import stability

# The README's example, word for word.
EXAMPLE = """\
import torch
import torchvision

import odenets
import stability

model = torchvision.models.resnet18(weights=None, num_classes=10).eval()  # or your own, with your weights
images = torch.rand(4, 3, 32, 32)
labels = model(images).argmax(1)

net = odenets.convert(model)  # explicit Euler with h = 1: the same outputs, from the same parameters
assert torch.allclose(net(images), model(images), rtol=1e-3, atol=1e-4)
print(stability.audit(net, images, labels, stability.Linf(8 / 255), steps=5, many_steps=10))

block = net.layer1[0].fields[0]  # f(t, y) = block(y) - y
state = model.maxpool(model.relu(model.bn1(model.conv1(images))))
print(stability.spectrum(lambda y: block(0.0, y), state, k=2, which="LR").values)

odenets.set_scheme(net, "implicit", substeps=4)  # any scheme, any number of substeps
print(net(images).argmax(1), odenets.converged(net))  # for each image: was every equation solved?
"""


def _lived_in(model):
    """In eval mode and float64, with BatchNorms that do something."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = 0.1 * torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_var = 1 + torch.rand(norm.running_var.shape, generator=generator)
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=generator)
        norm.bias.data = 0.1 * torch.randn(norm.bias.shape, generator=generator)
    return model.double().eval()


def _model(name="resnet18", **settings):
    torch.manual_seed(0)
    return _lived_in(getattr(models, name)(num_classes=10, **settings))


def _small(cls=ResNet, layers=(2, 2)):
    """A stem for small images and the first two layers only, three integrated blocks."""
    torch.manual_seed(0)
    model = cls(BasicBlock, [*layers, 1, 1], num_classes=4)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    if cls is ResNet:
        model.fc = nn.Linear(128, 4)
    return _lived_in(model)


def _images(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _tensors(model):
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _close(a, b):
    return torch.linalg.vector_norm(a - b) <= 1e-12 * torch.linalg.vector_norm(b)


def _assert_equal_maps(net, model, x):
    """Outputs and the gradients of all parameters and of the images, to rounding."""
    outputs, gradients = [], []
    for module in (net, model):
        leaf = x.clone().requires_grad_()
        outputs.append(module(leaf))
        loss = nn.functional.cross_entropy(outputs[-1], torch.arange(len(x), device=x.device))
        gradients.append(torch.autograd.grad(loss, [leaf, *model.parameters()]))
    assert _close(*outputs) and outputs[0].std() > 1e-3
    assert all(_close(mine, theirs) for mine, theirs in zip(*gradients))
    assert all(theirs.abs().max() > 0 for theirs in gradients[1])


@pytest.mark.parametrize(
    ("name", "integrated"), [("resnet18", [2, 1, 1, 1]), ("resnet50", [2, 3, 5, 2]), ("resnext50_32x4d", [2, 3, 5, 2])]
)
def test_explicit_euler_is_the_model(name, integrated, device):
    model, x = _model(name).to(device), _images(2, 64).to(device)
    net = odenets.convert(model)
    assert [len(stage.fields) for stage in odenets.stages(net).values()] == integrated
    _assert_equal_maps(net, model, x)
    assert all(stage.stats.steps == count for stage, count in zip(odenets.stages(net).values(), integrated))
    odenets.set_scheme(net, "midpoint")
    assert not torch.allclose(net(x), model(x), rtol=1e-3)  # so it was the scheme that gave the equality


@pytest.mark.parametrize(
    ("build", "integrated"),
    [
        (models.resnet18, 5),
        (models.resnet34, 13),
        (models.resnet50, 12),
        (models.resnet101, 29),
        (models.resnet152, 46),
        (models.wide_resnet50_2, 12),
        (models.resnext50_32x4d, 12),
        (models.resnext101_64x4d, 29),
        (lambda: ResNet(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True]), 12),
        (lambda: ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=lambda channels: nn.GroupNorm(1, channels)), 5),
        (lambda: ResNet(BasicBlock, [1, 1, 1, 1]), 1),
    ],
)
def test_every_key_is_accounted_for(build, integrated):
    with torch.device("meta"):
        model = build().eval()
    net = odenets.convert(model, "rk4", substeps=3)
    theirs, mine = _tensors(model), _tensors(net)
    assert list(net.key_of) == list(theirs) and sorted(net.key_of.values()) == sorted(mine)
    assert len(set(net.key_of.values())) == len(theirs)
    assert all(mine[net.key_of[key]] is tensor for key, tensor in theirs.items())
    assert {net.key_of[key] for key in model.state_dict()} == set(net.state_dict())
    stages = odenets.stages(net).values()
    assert sum(len(stage.fields) for stage in stages) == integrated
    assert all(str(stage.scheme) == "rk4" and stage.substeps == 3 and stage.interval == 1 for stage in stages)
    assert not any(module.training for module in net.modules())


def test_names():
    net = odenets.convert(_model())
    assert net.key_of["layer2.1.bn1.running_var"] == "layer2.1.fields.0.block.bn1.running_var"
    assert net.key_of["layer1.1.conv1.weight"] == "layer1.0.fields.1.block.conv1.weight"
    assert all(net.key_of[key] == key for key in ("conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"))
    assert list(odenets.stages(net)) == ["layer1.0", "layer2.1", "layer3.1", "layer4.1"]


def test_training_and_loading_are_seen_in_both(device):
    model, x = _small().to(device), _images(2, 8).to(device)
    net, before = odenets.convert(model), _small().to(device)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    net(x).square().sum().backward()
    optimiser.step()
    assert not torch.allclose(model(x), before(x)) and _close(net(x), model(x))
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(before.state_dict())
    assert _close(net(x), before(x))
    net.load_state_dict({net.key_of[key]: value for key, value in trained.items()})
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    assert all(field.block is block for field, block in zip(net.layer1[0].fields, model.layer1, strict=True))
    apart = odenets.convert(copy.deepcopy(model))
    assert not {id(tensor) for tensor in _tensors(apart).values()} & {id(tensor) for tensor in _tensors(model).values()}


def test_moves_are_seen_in_both(device):
    """A buffer of the ResNet itself moves with the rest: the mean that a user subtracts."""
    model = _small(_Normalised)
    odenets.convert(model).to(device, torch.float32)
    assert {tensor.dtype for tensor in _tensors(model).values()} == {torch.float32, torch.int64}
    assert model(_images(2, 16).to(device, torch.float32)).isfinite().all()


def test_the_model_stays_as_it_was():
    model, x = _small(), _images(2, 8)
    pristine, modules, output = repr(model), list(model.named_modules()), model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    net = odenets.convert(model, "implicit", substeps=2)
    net(x).sum().backward()
    net.fc = nn.Linear(128, 7).double()
    net.layer1.register_forward_hook(lambda module, inputs, output: 0 * output)
    net.register_forward_hook(lambda module, inputs, output: 0 * output)
    assert repr(model) == pristine and torch.equal(model(x), output)
    assert all(
        mine is theirs and name == old for (name, mine), (old, theirs) in zip(model.named_modules(), modules, strict=True)
    )
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[key], state[key]) for key in state)
    assert not hasattr(model, "key_of") and net(x).shape == (2, 7)


class _Normalised(ResNet):
    """A user's own: normalisation inside, a head that is not torchvision's."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))
        self.fc = nn.Sequential(nn.Dropout(), nn.Linear(128, 4))

    def forward(self, x):
        x = self.bn1(self.conv1(x - self.mean))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def test_models_that_users_changed(device):
    x, changed = _images(2, 16).to(device), []
    model = _model()
    model.fc = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    changed.append(model)
    changed.append(_small(_Normalised))
    tied = _small()
    tied.layer1[1] = tied.layer1[0]
    changed.append(tied)
    mixed = _small(layers=(4, 1))
    mixed.layer1[1] = nn.Tanh()  # between two runs
    changed.append(mixed)
    for model in changed:
        net = odenets.convert(model.to(device))
        _assert_equal_maps(net, model, x)
        assert set(net.key_of) == set(_tensors(model)) and set(net.key_of.values()) == set(_tensors(net))
        assert net.fc is model.fc and type(net) is type(model)
    assert [(name, len(stage.fields)) for name, stage in odenets.stages(net).items()] == [("layer1.0", 1), ("layer1.2", 2)]


@pytest.mark.parametrize("scheme", odenets.list_schemes())
def test_every_scheme_runs(scheme, device):
    model, x = _small().to(device), _images(2, 6).to(device).requires_grad_()
    net = odenets.convert(model, scheme, substeps=4)
    out = net(x)
    solved = odenets.converged(net)
    assert out.shape == (2, 4) and out.isfinite().all() and (solved is None or solved.all())
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_substeps_refine():
    """Halving h halves the distance to an accurate solution with explicit Euler; implicit Euler tends there as well."""
    net, x = odenets.convert(_small(), "rk4", substeps=64), _images(1, 6)
    with torch.no_grad():
        fine, errors = net(x), []
        for scheme, substeps in [("explicit", 16), ("explicit", 32), ("implicit", 32)]:
            odenets.set_scheme(net, scheme, substeps=substeps)
            errors.append(float((net(x) - fine).norm() / fine.norm()))
    assert 1.7 < errors[0] / errors[1] < 2.3 and errors[2] < 2 * errors[1] < 0.2


@pytest.mark.no_pretend
def test_unsolved_samples_are_reported(device):
    """torchvision's own initialisation, images of 32x32: at h = 1 implicit Euler finds no root in the first layer."""
    torch.manual_seed(0)
    model, x = models.resnet18(num_classes=10).double().eval().to(device), _images(4, 32).to(device)
    net = odenets.convert(model, "implicit")
    with torch.no_grad():
        assert net(x).isfinite().all() and not odenets.converged(net).any()
        assert odenets.stages(net)["layer1.0"].stats.unconverged == 4
        with pytest.raises(RuntimeError, match="4 of 4"):
            odenets.set_scheme(net, "implicit_euler(on_failure=raise)")
            net(x)
        odenets.set_scheme(net, "implicit_euler(tol=1e-10,max_iterations=200)", substeps=4)
        net(x)
        assert odenets.converged(net).all()
        y = torch.rand(2, 64, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
        first, second = net.layer1[0](y, trajectory=True)[:2]
        # (1 + h) z = y + h block(z), which cannot turn negative.
        assert torch.allclose(1.25 * second, y + 0.25 * model.layer1[0](second), rtol=0, atol=1e-8)
        assert torch.equal(first, y) and (second > -1e-8).all()


def test_jacobian_and_spectrum_of_a_block(device):
    """Eigenvalues of the field are those of the block less one, by torch's dense Jacobian and LAPACK."""
    model = _small().to(device)
    net = odenets.convert(model)
    y = torch.rand(1, 64, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    field = net.layer1[0].fields[1]
    dense = torch.func.jacrev(model.layer1[1])(y).detach().reshape(256, 256).cpu()
    operator = stability.jacobian(lambda y: field(0.0, y), y)
    assert torch.allclose(torch.from_numpy(operator @ torch.eye(256).double().numpy()), dense - torch.eye(256))
    eigenvalues = torch.linalg.eigvals(dense) - 1
    found = stability.spectrum(lambda y: field(0.0, y), y, k=4, which="LR")
    assert found.converged.all()
    expected = eigenvalues.real.sort(descending=True)[0][:4]
    assert torch.allclose(found.values[0].real, expected) and (eigenvalues + 1).abs().min() < 1e-12  # ReLU off: -1
    v = dense[0].view_as(y.cpu())
    expected = torch.func.jvp(model.layer1, (y,), (v.to(device),))[1].detach().flatten().cpu()
    assert torch.allclose(torch.from_numpy(stability.jacobian(net.layer1[0], y) @ v.flatten().numpy()), expected)


@pytest.mark.no_pretend
@pytest.mark.parametrize(("gradient", "passed"), [("exact", True), ("detached", False)])
def test_the_audit_works_on_it(gradient, passed, device):
    net, x = odenets.convert(_small().float().to(device), "implicit_euler", substeps=4), _images(4, 4).float().to(device)
    odenets.set_gradient(net, gradient)
    result = stability.audit(net, x, net(x).argmax(1), stability.Linf(8 / 255), checks=["finite_differences", "exact_gradient"])
    assert {check.name: check.passed for check in result.checks} == {"finite_differences": passed, "exact_gradient": passed}


def test_training_mode(device):
    """Explicit Euler trains like the model, statistics included; where a step iterates, BatchNorm is named and refused."""
    model, x = _small().to(device), _images(4, 8).to(device)
    net, twin = odenets.convert(copy.deepcopy(model)).train(), model.train()
    mine, theirs = net(x), twin(x)
    assert _close(mine, theirs) and not _close(theirs, copy.deepcopy(twin).eval()(x))
    assert all(torch.allclose(_tensors(net)[net.key_of[key]], value) for key, value in model.named_buffers())
    odenets.set_scheme(net, "implicit", substeps=4)
    with pytest.raises(ValueError, match=r"field 0\.block\.bn1 is a BatchNorm2d in training mode.*call eval\(\)"):
        net(x)
    assert net.eval()(x).isfinite().all()


def _patched():
    model = _small()
    model.forward = types.MethodType(lambda self, x: self.fc(x), model)
    return model


def _with_batch_statistics():
    model = _small()
    model.layer1[0].bn2 = nn.BatchNorm2d(64, track_running_stats=False)
    return model.eval()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: odenets.convert(models.resnet18()), r"bn1 is a BatchNorm2d in training mode: call model\.eval\(\) first"),
        (lambda: odenets.convert(_with_batch_statistics()), r"layer1\.0\.bn2 is a BatchNorm2d without running statistics"),
        (lambda: odenets.convert(nn.Linear(2, 2)), r"takes a torchvision\.models\.ResNet.*got Linear"),
        (lambda: odenets.convert(models.vgg11().eval()), "got VGG"),
        (lambda: odenets.convert(nn.DataParallel(_small())), "got DataParallel.*give the model inside"),
        (lambda: odenets.convert("resnet18"), "got str"),
        (lambda: odenets.convert(odenets.ode_resnet_small()), "got ODEResNet"),
        (lambda: odenets.convert(odenets.convert(_small())), "converted already; odenets.set_scheme"),
        (lambda: odenets.convert(ResNet(Bottleneck, [1, 1, 1, 1]).eval()), "nothing to integrate"),
        (lambda: odenets.convert(_patched()), "forward was replaced"),
        (lambda: odenets.convert(_small(), "magic"), "unknown scheme 'magic'"),
        (lambda: odenets.convert(_small(), substeps=0), "substeps.*got 0"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_example_of_the_readme(capsys):
    torch.manual_seed(0)
    exec(compile(EXAMPLE, "docs/guide.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "finite_differences: passed" in printed and printed.count("True") == 4
    readme = (Path(__file__).parents[2] / "docs/guide.md").read_text()
    assert "odenets.convert(" not in readme or EXAMPLE in readme
