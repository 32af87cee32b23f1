"""Certificates under attack: whatever moves an image by less than its radius leaves the prediction, and cheats are refused."""

import copy
import functools
import math

import pytest
import torch
from certified import worst_ratio
from sklearn.datasets import load_digits
from torch import nn

import odenets
import stability
from odenets.nets.certifiable import CayleyConv, Centre, MaxMin, PadChannels, ScaledPool, UnitRows, at_limit
from stability.certificates import moves
from stability.certificates.links import KINDS

TIGHT = "tol=1e-10,max_iterations=300,solver=newton"
NETS = {
    "explicit": {"scheme": "explicit", "field": "gradient_flow"},
    "heun": {"scheme": "heun", "field": "gradient_flow"},
    "splitting": {"scheme": f"splitting({TIGHT})", "field": "monotone"},
    "strang": {"scheme": f"splitting({TIGHT},composition=strang)", "field": "monotone"},
    "implicit": {"scheme": f"implicit({TIGHT})", "field": "gradient_flow"},
    "midpoint": {"scheme": f"implicit_midpoint({TIGHT})", "field": "monotone"},
    "cayley": {"scheme": f"implicit_midpoint({TIGHT})", "field": "skew"},
    "norsett": {"scheme": f"norsett3({TIGHT})", "field": "monotone"},
    "gauss": {"scheme": f"gauss4({TIGHT})", "field": "monotone"},
    "tr_bdf2": {"scheme": f"tr_bdf2({TIGHT})", "field": "gradient_flow"},
    "inf": {"scheme": f"implicit({TIGHT})", "field": "inf_monotone"},
}


@functools.cache
def digits():
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@functools.cache
def trained(kind):
    """A net of a stage whose head alone was trained, by least squares on its features: margins in no time."""
    torch.manual_seed(0)
    net = odenets.certifiable_small(size=8, width=8, depths=(2,), **NETS[kind])
    with torch.no_grad():
        for parameter in net.stage0.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.dim() == 1 else 0)
    (x, y), head = digits(), net.head
    with torch.no_grad():
        features = net[:-1](x[:600])
        wanted = nn.functional.one_hot(y[:600], 10).float() - 0.1
        gram = features.mT @ features + 1.0 * torch.eye(features.shape[1])
        net[-1] = nn.Linear(*head.free.shape[::-1])
        net[-1].weight.copy_(torch.linalg.solve(gram, features.mT @ wanted).mT)
        net[-1].bias.zero_()
    return net.eval()


def ascend(certificate, net, x, radius, p, steps=25, seed=0):
    """Images within `radius` of x, in [0, 1] and in float64, at which an ascent has lowered the margins."""
    exact, x = copy.deepcopy(net).double(), x.double()
    top = certificate.predict(x)
    room, d = radius.view(-1, 1, 1, 1), torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def within(d):
        d = d.clamp(-room, room) if p == math.inf else d * (room / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
        return (x + d).clamp(0, 1) - x

    d = within(d * room / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    for k in range(steps):
        d = d.detach().requires_grad_()
        logits = exact(x + d)
        margin = logits.gather(1, top[:, None])[:, 0] - logits.scatter(1, top[:, None], -math.inf).max(1).values
        (g,) = torch.autograd.grad(margin.sum(), d)
        g = g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
        d = within(d - 2 * room * (1 - k / steps) * g)
    return x + d.detach()


@pytest.mark.parametrize("kind", NETS)
def test_no_attack_enters_the_radius_and_some_succeed_not_far_outside(kind):
    net, (x, y) = trained(kind), digits()
    x, y, norm = x[600:616], y[600:616], stability.Linf if kind == "inf" else stability.L2
    certificate = stability.certify(net, x, y, norm=norm)
    proven = certificate.radius > 0
    assert proven.float().mean() > 0.4 and not certificate.abstained.any()
    assert torch.equal(certificate.predicted, net(x).argmax(1)) and (certificate.predicted[proven] == y[proven]).all()
    x, radius, classes = x[proven], certificate.radius[proven], certificate.predicted[proven]
    for factor, steps in ((0.999, 12), (0.999, 2)):
        attacked = ascend(certificate, net, x, factor * radius, certificate.p, steps)
        assert (torch.linalg.vector_norm((attacked - x).flatten(1), certificate.p, dim=1) <= radius).all()
        assert torch.equal(certificate.predict(attacked), classes)
    assert (certificate.predict(ascend(certificate, net, x, 10 * radius, certificate.p, 10)) != classes).any()


@pytest.mark.parametrize("kind", ["explicit", "splitting", "implicit", "midpoint", "inf"])
def test_no_pair_of_states_parts_in_a_certifiable_stage(kind):
    stage = copy.deepcopy(trained(kind).stage0).double()
    odenets.set_scheme(stage, str(stage.scheme).replace("tol=1e-10", "tol=1e-13"))
    p = math.inf if kind == "inf" else 2
    assert worst_ratio(stage, p=p, shape=(8, 4, 4), count=10, rounds=12) <= 1 + 1e-8


@pytest.mark.parametrize("scheme", ["explicit", "implicit_midpoint", "implicit"])
def test_brute_force_on_four_pixels(scheme):
    """Images all over the sphere of the radius: none has another class, and some have just beyond."""
    torch.manual_seed(1)
    field = odenets.get_field("gradient_flow").build(odenets.fields.basic_layers, 4)
    stage = at_limit(odenets.ODEStage([field], scheme), (4, 1, 1))
    net = nn.Sequential(Centre(0.2), nn.PixelUnshuffle(2), stage, nn.Flatten(), UnitRows(4, 3)).double()
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    certificate = stability.certify(net, x)
    d = torch.randn(20000 if scheme == "explicit" else 1500, 1, 2, 2, dtype=torch.float64)
    d = d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    changed = 0
    for image, radius, label in zip(x, certificate.radius, certificate.predicted):
        for factor in (1 - 1e-9, 1.3):
            near = image + factor * radius * d
            near = near[((near >= 0) & (near <= 1)).flatten(1).all(1)]
            other = (certificate.predict(near) != label).sum() if len(near) else 0
            assert factor > 1 or other == 0
            changed += int(other) if factor > 1 else 0
    assert (certificate.radius > 0).all() and changed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_point_attack_on_the_radius(dtype):
    """A linear net, where the radius is the distance to the boundary exactly: images are walked there by single roundings."""
    torch.manual_seed(0)
    net = nn.Sequential(Centre(0.5), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    x = 0.5 + 0.05 * torch.randn(40, 1, 4, 4, dtype=dtype)
    certificate = stability.certify(net, x)
    exact, W = copy.deepcopy(net).double(), net[-1].weight.detach().double()
    logits, top, x = exact(x.double()), certificate.predicted, x.double()
    distances = (W[top][:, None] - W[None]).norm(dim=2)
    gaps = (logits.gather(1, top[:, None]) - logits) / distances.clamp_min(1e-30)
    gap, other = gaps.scatter(1, top[:, None], math.inf).min(1)
    assert ((certificate.radius <= gap) & (certificate.radius >= gap * (1 - 1e-9) - 1e-13)).all()  # nothing given away
    normal = ((W[other] - W[top]) / (W[other] - W[top]).norm(dim=1, keepdim=True)).view_as(x)
    for factor, flips in ((1 - 1e-12, False), (1 + 1e-7, True)):
        near = x + factor * certificate.radius.view(-1, 1, 1, 1) * normal
        assert near.min() >= 0 and near.max() <= 1
        assert ((certificate.predict(near) != top) == flips).all()


def test_the_budget_adds_up():
    x, y = digits()
    certificate = stability.certify(trained("midpoint"), x[:8], tau=1e-6)
    budget = certificate.budget
    spent = sum(budget.residuals.values()) + sum(budget.deployed.values()) + sum(budget.rounding.values())
    torch.testing.assert_close(certificate.radius, ((budget.margin - spent) / budget.factor).clamp_min(0))
    assert budget.deployed == pytest.approx({"stage0": 2 * 2 * 1e-6})  # two blocks, the constant of midpoint, tau
    assert (budget.residuals["stage0"] <= 4e-6).all() and sum(budget.rounding.values()) < 1e-6
    assert (stability.certify(trained("midpoint"), x[:8], tau=1e-3).radius <= certificate.radius).all()
    wrong = stability.certify(trained("midpoint"), x[:8], (certificate.predicted + 1) % 10)
    assert (wrong.radius == 0).all() and torch.equal(wrong.predicted, certificate.predicted)


def test_loose_relative_tolerances_of_the_net_do_not_matter_to_a_certificate():
    """Equations are solved to tau, whatever the scheme says; what is certified is `predict`, not the sloppy net."""
    net, x = copy.deepcopy(trained("implicit")), digits()[0][:8]
    odenets.set_scheme(net, "implicit(tol=0.3)")
    certificate = stability.certify(net, x)
    torch.testing.assert_close(certificate.radius, stability.certify(trained("implicit"), x).radius, rtol=0, atol=1e-6)
    assert all((used <= 2e-7).all() for used in certificate.budget.residuals.values())


def test_unsolved_equations_are_abstained_from(monkeypatch):
    monkeypatch.setattr(moves, "ITERATIONS", 1)
    certificate = stability.certify(trained("midpoint"), digits()[0][:4])
    assert certificate.abstained.all() and (certificate.radius == 0).all() and (certificate.predicted == -1).all()
    assert (certificate.predict(digits()[0][:4]) == -1).all()


def test_an_image_is_certified_alike_in_every_batch():
    x = digits()[0][:6]
    whole, alone = (stability.certify(trained("midpoint"), part) for part in (x, x[2:3]))
    torch.testing.assert_close(whole.radius[2:3], alone.radius, rtol=0, atol=1e-6)


def test_later_changes_of_the_net_do_not_touch_a_certificate():
    net, x = copy.deepcopy(trained("explicit")), digits()[0][:4]
    certificate = stability.certify(net, x)
    nn.init.zeros_(net[-1].weight)
    assert torch.equal(certificate.predict(x), certificate.predicted)


def test_rows_that_lie_opposite_are_two_apart():
    """The factor sqrt 2 of normalised last layers holds for orthogonal rows alone."""
    head = UnitRows(4, 2)
    with torch.no_grad():
        head.free.copy_(torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]))
    x = torch.tensor([[[[0.9, 0.1], [0.1, 0.1]]]])
    certificate = stability.certify(nn.Sequential(nn.Flatten(), head).double(), x)
    assert certificate.radius.item() == pytest.approx(0.9, rel=1e-6)  # and not 1.8/sqrt 2


class Normalise(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


class Quiet(nn.Flatten):
    def forward(self, x):
        return 3 * super().forward(x)


# Contracts gradient flows almost up to h L = 2, in theory; its equations are not monotone, and errors in them grow.
BACKWARDS = odenets.Tableau("backwards", [[-1e-6]], [1], order=1, structure="diagonal", source="for the test")


def cheat(kind):
    """A net that looks certifiable and is not."""
    net = copy.deepcopy(trained("explicit"))
    flow = net.stage0.fields[1]
    if kind == "a hidden 1/std":
        net.centre = Normalise()
    elif kind == "GroupNorm":
        net.pool = nn.GroupNorm(1, 8)
    elif kind == "a norm of the batch":
        net.pool = nn.BatchNorm2d(8)
    elif kind == "a one-step power iteration":
        nn.utils.parametrizations.spectral_norm(flow.conv, n_power_iterations=1)
    elif kind == "the reshaped norm":
        with torch.no_grad():
            flow.conv.weight.mul_(2**0.5 / torch.linalg.matrix_norm(flow.conv.weight.flatten(1), 2))
    elif kind == "a hook":
        net.pool.register_forward_hook(lambda module, args, y: 5 * y)
    elif kind == "a forward of its own":
        net.flatten.forward = lambda y: 5 * y.flatten(1)
    elif kind == "a subclass":
        net.flatten = Quiet()
    elif kind == "other padding":
        flow.conv.padding_mode = "circular"
    elif kind == "another field":
        net.stage0.fields[1] = odenets.get_field("residual").build(odenets.fields.basic_layers, 8)
    elif kind == "no linear head":
        net.append(nn.ReLU())
    elif kind == "flattened images":
        net.flatten = nn.Flatten(0)
    elif kind == "plain weights":
        nn.init.normal_(flow.conv.weight)
    else:
        odenets.set_scheme(net, kind)
    return net


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("a hidden 1/std", "layer 'centre' is a Normalise"),
        ("GroupNorm", "layer 'pool' is a GroupNorm"),
        ("a norm of the batch", "layer 'pool' is a BatchNorm2d"),
        ("a one-step power iteration", r"layer 'stage0.fields.1.conv' .* is parametrised"),
        ("the reshaped norm", "layer 'stage0': no step of explicit_euler .*proven up to h"),
        ("a hook", "layer 'pool' .* has forward hooks"),
        ("a forward of its own", "layer 'flatten' .* has a forward of its own"),
        ("a subclass", "layer 'flatten' is a Quiet"),
        ("other padding", "'stage0.fields.1.conv' is no 3x3 convolution with stride 1 and zero padding"),
        ("another field", "layer 'stage0': its field 1 is a Block"),
        ("no linear head", "last layer .* is a ReLU"),
        ("flattened images", "flattens more than one image"),
        ("plain weights", "layer 'stage0': no step"),
        ("rosenbrock_euler", "layer 'stage0': its scheme rosenbrock_euler is no Runge-Kutta"),
        ("ie_skip", "layer 'stage0': its scheme ie_skip"),
        ("bdf2", "layer 'stage0': its scheme bdf2"),
        ("adaptive", "layer 'stage0': its scheme adaptive"),
        ("sdirk3", "layer 'stage0': no step of sdirk3"),
        ("midpoint", "layer 'stage0': no step of midpoint"),
        ("lobatto_iiic4", "layer 'stage0': lobatto_iiic4: no constant is known by which residuals .* no diagonal D is found"),
        ("splitting", "layer 'stage0': no step of splitting .*fields that say their parts"),
        (BACKWARDS, "layer 'stage0': backwards: no constant is known"),
    ],
)
def test_cheats_are_refused_by_the_name_of_the_layer(kind, sentence):
    with pytest.raises(odenets.InputError, match=sentence):
        stability.certify(cheat(kind), digits()[0][:2])


def test_bad_input():
    net, x = trained("midpoint"), digits()[0][:2]
    for change, sentence in (
        ({"x": x + 0.5}, r"images must lie in \[0, 1\]; these go from"),
        ({"x": x * math.nan}, r"images must lie in \[0, 1\]"),
        ({"x": x[0]}, r"images \(B, C, H, W\)"),
        ({"tau": 0.0}, "tau must be positive and finite, got 0"),
        ({"tau": 1e-14}, "tau = 1e-14 is below what rounding .* the least is"),
        ({"dtype": torch.float32}, "dtype must be torch.float64"),
        ({"norm": "L1"}, "norm must be stability.L2 or stability.Linf"),
        ({"norm": stability.Linf}, "layer 'stage0': .*not proven in this norm"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "one whole number for each of 2 images"),
        ({"net": nn.ReLU()}, "last layer '' is a ReLU"),
    ):
        with pytest.raises(odenets.InputError, match=sentence):
            stability.certify(**{"net": net, "x": x, **change})
    with pytest.raises(odenets.InputError, match=r"layer 'head' takes \d+ features, but images of shape \(1, 16, 16\) give"):
        stability.certify(net, torch.zeros(1, 1, 16, 16, dtype=x.dtype))
    with pytest.raises(odenets.InputError, match=r"for images of shape \(1, 8, 8\), got \(1, 4, 4\)"):
        stability.certify(net, x).predict(x[:, :, :4, :4])
    broken = copy.deepcopy(net)
    broken.stage0.fields[0].flow.conv.weight.data[0] = math.nan
    with pytest.raises(odenets.InputError, match="weight of the network is not finite"):
        stability.certify(broken, x)


def test_layers_between_are_what_they_say():
    y = torch.randn(4, 6, 6, 6, dtype=torch.float64)
    norms = y.flatten(1).norm(dim=1)
    for layer, kept in ((PadChannels(9), True), (CayleyConv(6, 9), True), (CayleyConv(6, 4), False), (ScaledPool(2), False)):
        after = layer.double()(y).flatten(1).norm(dim=1)
        assert (after <= norms * (1 + 1e-12)).all() and (torch.allclose(after, norms, rtol=1e-12) == kept)
    constant = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    assert ScaledPool(2)(constant).norm() == constant.norm()  # the norm 1 is met
    with pytest.raises(odenets.InputError, match="pads to 2 channels, but 6 came"):
        PadChannels(2)(y)


def test_gradient_norms_are_kept_where_the_field_is_skew_and_lost_to_contraction_elsewhere():
    """||gradient of a margin|| over the distance of the rows: 1 would leave nothing of the radius on the way."""
    kept = {}
    for kind in ("cayley", "splitting", "explicit"):
        net, x = copy.deepcopy(trained(kind)).double(), digits()[0][:20].double()
        net.pool, net[-1] = ScaledPool(1), UnitRows(128, 10).double()
        kept[kind] = stability.kept_gradient(net, x)
        assert (kept[kind] <= 1 + 1e-9).all()
    # The stem pads 4 channels to 8: gradients lose what falls on the padded ones, about a factor sqrt 2, in every kind alike.
    mean = {kind: found.mean().item() for kind, found in kept.items()}
    assert 0.5 < mean["cayley"] < 0.9 and max(mean.values()) == mean["cayley"]
    exact = nn.Sequential(nn.Flatten(), UnitRows(64, 10)).double()
    torch.testing.assert_close(stability.kept_gradient(exact, x), torch.ones(20, dtype=torch.float64))  # nothing in between


def test_bad_sizes_of_a_certifiable_net():
    with pytest.raises(odenets.InputError, match="size must be a multiple of 4"):
        odenets.certifiable_small(size=30)
    with pytest.raises(odenets.InputError, match="width must be at least 4 . in_channels = 12"):
        odenets.certifiable_small(size=32, in_channels=3, width=8)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize(
    "layer",
    [Centre(0.3), PadChannels(6), ScaledPool(2), CayleyConv(4, 6), CayleyConv(4, 2), nn.PixelUnshuffle(2), nn.Flatten()],
)
def test_the_factor_of_a_layer_is_the_norm_of_its_matrix(layer, p):
    """In L-infinity too, where pooling and mixing do expand: a loose attack would not notice a factor that is too small."""
    layer, zero = layer.double(), torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    matrix = torch.func.jacrev(layer)(zero).reshape(-1, zero.numel()).detach()
    norm = torch.linalg.matrix_norm(matrix, p).item()
    factor = KINDS[type(layer)]("layer", layer).bounds((4, 4, 4), 8.0, p, 1e-7).factor
    assert norm <= factor * (1 + 1e-12) and factor <= norm * (1 + 1e-9)


def test_sorted_pairs_part_no_two_states_and_their_nets_are_certified():
    x, y = torch.randn(2, 200, 6, 2, 2, dtype=torch.float64)
    for p in (2, math.inf):
        apart = torch.linalg.vector_norm((MaxMin()(x) - MaxMin()(y)).flatten(1), p, dim=1)
        assert (apart <= torch.linalg.vector_norm((x - y).flatten(1), p, dim=1) * (1 + 1e-12)).all()
    torch.testing.assert_close(MaxMin()(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    with pytest.raises(odenets.InputError, match="pairs of channels, and 3 came"):
        MaxMin()(x[:, :3])
    torch.manual_seed(0)
    net = odenets.certifiable_small(size=8, width=8, depths=(2,), field="skew", scheme="implicit_midpoint", maxmin=True).eval()
    assert [name for name, _ in net.named_children()][3:7] == ["stage0_0", "maxmin0_0", "stage0_1", "maxmin0_1"]
    images = digits()[0][:8]
    certificate = stability.certify(net, images)
    assert (certificate.radius > 0).all() and certificate.budget.factor <= 1 + 1e-8
    attacked = ascend(certificate, net, images, 0.999 * certificate.radius, 2, steps=5)
    assert torch.equal(certificate.predict(attacked), certificate.predicted)
