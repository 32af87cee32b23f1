"""Fields, maps and networks that write into what they are given: the same numbers as out of place, and nothing overwritten."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, ResNet

import odenets
import stability
from odenets.nets.guard import Guard
from odenets.nets.learned import LearnedLMStage
from stability import Linf
from stability.network.penalty import log_norm_estimate

NAMES = odenets.list_schemes()
TIGHT = {name: f"{name}(tol=1e-11,max_iterations=200)" if odenets.get_scheme(name).implicit else name for name in NAMES}


def _states(seed=0, shape=(3, 4, 5, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _conv(seed=0):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    conv.weight.data *= 0.5
    return conv


class Field(nn.Module):
    """conv(relu(y)), or minus the state that the ReLU has been applied to, in the argument itself or not."""

    def __init__(self, inplace, skip=False, seed=0):
        super().__init__()
        self.conv, self.inplace, self.skip = _conv(seed), inplace, skip

    def forward(self, t, y):
        y = F.relu(y, inplace=self.inplace)
        return self.conv(y) - y if self.skip else self.conv(y)


def _stages(scheme, substeps=2):
    return [
        odenets.ODEStage([Field(inplace, skip, seed) for seed, skip in enumerate((False, True))], scheme, substeps=substeps)
        for inplace in (True, False)
    ]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_gives_the_value_of_the_out_of_place_field(name, mode, device):
    written, plain = (stage.to(device) for stage in _stages(TIGHT[name]))
    y = _states().to(device)
    before = y.clone()
    with mode():
        value, expected = written(y, trajectory=True), plain(y, trajectory=True)
    assert torch.equal(y, before) and torch.equal(value, expected)


@pytest.mark.parametrize("gradient", ["exact", "unrolled", "detached"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_gives_the_gradients_of_the_out_of_place_field(name, gradient):
    found, leaf = [], _states().requires_grad_()
    for stage in _stages(TIGHT[name]):
        odenets.set_gradient(stage, gradient)
        found.append(torch.autograd.grad(stage(leaf).square().sum(), [leaf, *stage.parameters()]))
    assert all(torch.equal(one, other) for one, other in zip(*found))


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_under_transforms(name):
    y, v, found = _states(), _states(1), []
    for stage in _stages(TIGHT[name]):
        pull = torch.func.vjp(stage, y)[1]
        found.append((torch.func.jvp(stage, (y,), (v,))[1], pull(v)[0]))
    assert all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in zip(*found))
    assert torch.equal(y, _states())


@pytest.mark.parametrize("spec", ["rk4", pytest.param("implicit(fixed=true,max_iterations=4)", marks=pytest.mark.slow)])
def test_compiled(spec):
    written, plain = _stages(spec)
    y = _states()
    with torch.no_grad():
        value = torch.compile(written, fullgraph=True, backend="aot_eager")(y)
        torch.testing.assert_close(value, plain(y))
    assert torch.equal(y, _states())


def test_a_plain_function_and_the_learned_stage():
    stage = odenets.ODEStage(lambda t, y: y.mul_(2), "rk4")
    y = torch.ones(1, 1, dtype=torch.float64)
    assert stage(y).item() == pytest.approx(1 + 2 + 2 + 4 / 3 + 2 / 3) and y.item() == 1
    torch.manual_seed(0)
    written, plain = (LearnedLMStage([Field(inplace, seed=n) for n in range(3)]).double() for inplace in (True, False))
    y = _states()
    assert torch.equal(written(y, trajectory=True), plain(y, trajectory=True)) and torch.equal(y, _states())


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_returns_its_argument_or_a_view_of_it(name):
    y = torch.linspace(1, 2, 6, dtype=torch.float64)[None]
    fields = (lambda t, y: y, lambda t, y: y.view_as(y)), (lambda t, y: 1 * y, lambda t, y: 1 * y)
    value, expected = (odenets.ODEStage(pair, TIGHT[name], substeps=2)(y) for pair in fields)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


class Buffered(nn.Module):
    """A field that returns the same memory each time."""

    def __init__(self):
        super().__init__()
        self.memory = torch.empty(1, 3, dtype=torch.float64)

    def forward(self, t, y):
        with torch.no_grad():
            return torch.mul(y, -1, out=self.memory)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_writes_into_an_earlier_slope_is_refused_or_right(name):
    y, refused = _states(shape=(1, 3)), "wrote into a slope"
    field = Buffered()
    with torch.no_grad():
        expected = odenets.ODEStage([lambda t, y: -y] * 2, TIGHT[name])(y)
        try:
            value = odenets.ODEStage([field, field], TIGHT[name])(y)
        except ValueError as error:
            assert refused in str(error)
        else:
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)
    if name in ("rk4", "ab2"):  # which hold slopes
        with pytest.raises(ValueError, match=refused), torch.no_grad():
            odenets.ODEStage([field, field], name)(y)


def test_a_field_that_writes_at_times_is_refused():
    calls = []

    def field(t, y):
        calls.append(t)
        return y.neg_() if len(calls) > 2 else -y

    with pytest.raises(ValueError, match="had not before"):
        (stage := odenets.ODEStage(field, "rk4"))(_states())
    y = _states()  # from now on it gets copies
    torch.testing.assert_close(stage(y), odenets.ODEStage(lambda t, y: -y, "rk4")(y))
    assert torch.equal(y, _states())


class Copies(TorchDispatchMode):
    """Counts the copies of whole tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


def _resnet(block):
    torch.manual_seed(3)
    model = ResNet(block, [2, 2, 1, 1], num_classes=4)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.MaxPool2d(2)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 4)
    return model.double().eval()


def _preactivated(inplace):
    class Preactivated(BasicBlock):
        def forward(self, x):
            x = F.relu(x, inplace=inplace)
            shortcut = x if self.downsample is None else self.downsample(x)
            return 0.3 * self.conv2(torch.relu(self.bn1(self.conv1(x)))) + shortcut

    return Preactivated


@pytest.mark.parametrize(
    ("scheme", "substeps"),
    [
        ("explicit", 1),
        ("explicit", 2),
        ("rk4", 1),
        ("implicit(tol=1e-10)", 1),
        ("sdirk2(tol=1e-10)", 1),
        ("ab2", 2),
        ("ie_skip", 1),
    ],
)
def test_convert(scheme, substeps):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nets = [odenets.convert(_resnet(_preactivated(inplace)), scheme, substeps) for inplace in (True, False)]
    with torch.no_grad():
        value, expected = (net(x) for net in nets)
    assert torch.equal(value, expected)
    slopes = [torch.autograd.grad(net(leaf).sum(), leaf)[0] for net in nets for leaf in [x.clone().requires_grad_()]]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("scheme", ["explicit", "rk4", "ab2"])
def test_the_blocks_of_torchvision_are_not_copied(scheme):
    model, x = _resnet(BasicBlock), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad(), Copies() as copies:
        odenets.convert(model, scheme, substeps=2)(x)
    assert copies.count == 0
    stage = odenets.ODEStage([Field(False), Field(False, seed=1)], scheme, substeps=4)
    for expected in (2, 0):  # any other: one copy for each field, in the first pass
        with torch.no_grad(), Copies() as copies:
            stage(_states())
        assert copies.count == expected


def test_a_dropout_that_writes_in_training_only():
    nets = [odenets.ODEStage(Dropped(inplace)).double() for inplace in (True, False)]
    y, found = _states(), []
    for net in nets:
        torch.manual_seed(0)
        values = []
        for mode in (False, True, False, True):
            for module in net.modules():  # as `evaluating` restores modes, without a call of train()
                module.training = mode
            values.append(net(y))
        found.append(torch.stack(values))
    assert torch.equal(*found) and torch.equal(y, _states())
    assert torch.equal(copy.deepcopy(nets[0].eval())(y), pickle.loads(pickle.dumps(nets[0]))(y))


class Dropped(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.dropout = nn.Dropout(inplace=inplace)

    def forward(self, t, y):
        return self.dropout(y)


def test_the_guard_holds_no_slope():
    guard, field = Guard(), Field(False)
    for _ in range(5):
        guard(field, 0.0, _states())
    assert all(reference() is None for reference, _ in guard._returned)


MAPS = {
    "spectrum": lambda f, y: stability.spectrum(f, y, k=3).values,
    "ritz_values": lambda f, y: stability.ritz_values(f, y, 8),
    "log_norm": stability.log_norm,
    "spectral_norm": stability.spectral_norm,
    "singular_values": lambda f, y: stability.singular_values(f, y, k=2).values,
    "numerical_range": lambda f, y: stability.numerical_range(f, y, 4, dense_limit=8).support,
    "pseudospectrum": lambda f, y: stability.pseudospectrum(f, y, [0.5, 1j]).smallest,
    "kreiss_constant": lambda f, y: stability.kreiss_constant(f, y[:1, :, :2, :2], threshold=2.0).values,
    "departure_from_normality": lambda f, y: stability.departure_from_normality(f, y, dense_limit=8).commutator,
    "lyapunov_exponents": lambda f, y: stability.lyapunov_exponents(f, y, 2).values,
    "jacobian": lambda f, y: torch.from_numpy(stability.jacobian(f, y[:1]) @ torch.eye(100, dtype=y.dtype).numpy()),
    "log_norm_estimate": lambda f, y: log_norm_estimate(f, y),
}


@pytest.mark.parametrize("name", MAPS)
def test_figures_of_a_map_that_writes(name):
    maps = [nn.Sequential(nn.ReLU(inplace=inplace), _conv()) for inplace in (True, False)]
    y = _states()
    found, expected = (MAPS[name](f, y) for f in maps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(y, _states())


class Net(nn.Module):
    """Writes into its images, its stage into its states, and the layer behind it into what the stage returns."""

    def __init__(self, inplace, scheme="explicit"):
        super().__init__()
        torch.manual_seed(0)
        self.inplace, self.stem = inplace, nn.Conv2d(1, 4, 3, padding=1)
        self.stage = odenets.ODEStage([Field(inplace, seed=n) for n in range(2)], scheme)
        self.head = nn.Sequential(nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(144, 4))
        self.double().eval()

    def forward(self, x):
        return self.head(self.stage(self.stem(x.sub_(0.5).mul_(4) if self.inplace else (x - 0.5) * 4)))


def _images():
    return torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _growth(net, x):
    return stability.growth(net, x, 1e-3 * _images()[:3])


NETWORK = {
    "measured": lambda net, x: _growth(net, x).measured,
    "linear": lambda net, x: _growth(net, x).linear,
    "predicted": lambda net, x: _growth(net, x).predicted.nan_to_num(),
    "dynamics": lambda net, x: torch.stack([block.log_norm for block in stability.dynamics(net, x[:1], dimension=4)]),
    "explain": lambda net, x: torch.tensor(stability.explain(net, x, dimension=8).lipschitz),
    "stage_exponents": lambda net, x: stability.stage_exponents(net, x)[1].values,
    "log_norm_penalty": lambda net, x: stability.log_norm_penalty(net, x, target=-10.0),
}


@pytest.mark.parametrize("name", NETWORK)
def test_figures_along_a_network_that_writes(name):
    x = _images()[:3]
    found, expected = (NETWORK[name](Net(inplace), x) for inplace in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, _images()[:3])


@pytest.mark.parametrize(
    "attack",
    [
        stability.fgsm,
        partial(stability.pgd, steps=5),
        partial(stability.apgd, steps=5),
        partial(stability.square, queries=20),
        partial(stability.noise, draws=5),
    ],
)
def test_attacks_on_a_network_that_writes(attack):
    x, net, plain = _images(), Net(True), Net(False)
    y = plain(x).argmax(1)
    moved = attack(net, x, y, Linf(0.05))
    assert torch.equal(x, _images()) and torch.equal(moved, attack(plain, x, y, Linf(0.05)))
    assert (moved - x).abs().max() <= 0.05 + 1e-9


def test_judge_and_audit_of_a_network_that_writes():
    def spoiling(net, x, y):  # an attack that writes into the images it was given
        return x.add_(0.04).clamp_(0, 1)

    x, nets = _images(), (Net(True), Net(False))
    y = nets[1](x).argmax(1)
    attacks = [("spoiling", spoiling), ("guarded", stability.before_the_judge(spoiling))]
    verdicts = [stability.worst_case(net, x, y, Linf(0.05), attacks) for net in nets]
    assert torch.equal(x, _images()) and all(
        torch.equal(*(getattr(verdict, name) for verdict in verdicts)) for name in ("robust", "broken_by", "x_adv")
    )
    assert ((verdicts[0].x_adv - x).abs() <= 0.05 + 1e-9).all()
    audits = [stability.audit(net, x, y, Linf(0.05), steps=3, many_steps=5, queries=10) for net in nets]
    assert torch.equal(x, _images()) and [check.figures for check in audits[0].checks] == [
        check.figures for check in audits[1].checks
    ]
