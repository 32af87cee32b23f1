"""The fields: specs, adjoints, and every stated bound of mu_2 against LAPACK on random weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import odenets
import stability
from odenets.nets.convolution import operator_bound
from odenets.nets.fields import basic_layers, bottleneck_layers


def dense(f, y):
    """(B, n, n) Jacobians, one for each sample."""
    rows = torch.func.vmap(torch.func.jacrev(lambda s: f(0.0, s[None])[0]))(y)
    return rows.reshape(len(y), y[0].numel(), y[0].numel()).detach()


def random_field(spec, layers=basic_layers, channels=4, seed=0, gain=1.0):
    torch.manual_seed(seed)
    field = odenets.get_field(spec).build(layers, channels).double()
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(gain).add_(0.1 * torch.randn_like(p))
    return field


def state(batch=2, channels=4, size=4, seed=1, scale=1.0):
    return scale * torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("residual", "residual"),
        ("damped(rate=0.5)", "damped"),
        (" damped( rate = 2 ) ", "damped(rate=2.0)"),
        ("antisymmetric(slope=0.2,shift=0)", "antisymmetric(shift=0.0,slope=0.2)"),
        ("gradient_flow()", "gradient_flow"),
    ],
)
def test_canonical_specs(spec, canonical):
    assert str(odenets.get_field(spec)) == canonical and odenets.get_field(canonical) == odenets.get_field(spec)
    assert odenets.get_field(odenets.get_field(spec)) == odenets.get_field(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "unknown field 'nonsense'; choose from residual, damped, antisymmetric, gradient_flow"),
        (None, "cannot read the field"),
        ("damped(", "cannot"),
        ("damped(rat=1)", "unknown parameter 'rat' in the field.*rate"),
        ("damped(rate=-1)", "at least 0.*got -1"),
        ("damped(rate=inf)", "finite, got inf"),
        ("damped(rate=nan)", "a number"),
        ("antisymmetric(slope=1.5)", "at most 1, got 1.5"),
        ("gradient_flow(rate=1)", "takes none"),
    ],
)
def test_bad_specs_get_one_clear_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        odenets.get_field(spec)


@pytest.mark.parametrize("spec", odenets.list_fields())
@pytest.mark.parametrize("layers", [basic_layers, bottleneck_layers])
def test_every_field_keeps_the_shape_and_treats_samples_alone(spec, layers, device):
    field, y = random_field(spec, layers, 8).to(device), state(3, 8).to(device)
    value = field(0.0, y)
    assert value.shape == y.shape and field.mu_bound(y).shape == (3,)
    torch.testing.assert_close(field(0.0, y[1:2]), value[1:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.mu_bound(y[1:2]), field.mu_bound(y)[1:2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "spec", [*odenets.list_fields(), "damped(rate=3)", "antisymmetric(shift=0.7,slope=0.6)", "antisymmetric(slope=1)"]
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), gain=st.floats(0.2, 4), scale=st.floats(0.05, 5))
def test_the_stated_bound_holds(spec, seed, gain, scale):
    field, y = random_field(spec, seed=seed, gain=gain), state(2, size=3, seed=seed, scale=scale)
    J = dense(field, y)
    mu = torch.linalg.eigvalsh((J + J.mT) / 2)[:, -1]
    assert (mu <= field.mu_bound(y) + 1e-10).all()
    if spec != "skew":  # whose symmetric part is 0: nothing to iterate on
        torch.testing.assert_close(stability.log_norm(lambda y: field(0.0, y), y), mu, rtol=1e-7, atol=1e-7)


def test_the_bound_of_bottleneck_blocks_holds():
    for spec in odenets.list_fields():
        field, y = random_field(spec, bottleneck_layers, 8, gain=2.0), state(2, 8, 3)
        J = dense(field, y)
        assert (torch.linalg.eigvalsh((J + J.mT) / 2)[:, -1] <= field.mu_bound(y) + 1e-10).all(), spec


def test_damping_moves_every_eigenvalue_by_its_rate():
    plain, damped, y = random_field("residual"), random_field("damped(rate=0.7)"), state()
    torch.testing.assert_close(dense(damped, y), dense(plain, y) - 0.7 * torch.eye(64, dtype=y.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_antisymmetric_kernel_is_skew_and_its_eigenvalues_lie_left(groups):
    field = random_field("antisymmetric(shift=0.3,slope=0.2)", basic_layers if groups == 1 else bottleneck_layers, 8, gain=5.0)
    assert field.conv.groups == groups
    y, w = state(1, 8, seed=3), state(1, 8, seed=4)

    def turn(v):
        return F.conv2d(v, field.kernel(), padding=1, groups=groups)

    assert (turn(y) * w).sum().item() == pytest.approx(-(y * turn(w)).sum().item(), rel=1e-12)
    transposed = F.conv_transpose2d(y, field.conv.weight, padding=1, groups=groups)
    torch.testing.assert_close(turn(y), F.conv2d(y, field.conv.weight, padding=1, groups=groups) - transposed)
    values = np.linalg.eigvals(dense(field, y)[0].numpy())
    assert values.real.max() <= -0.3 * 0.2 + 1e-10 and abs(values.imag).max() > 1
    linear = random_field("antisymmetric(shift=0.3,slope=1)", gain=5.0)
    assert stability.log_norm(lambda y: linear(0.0, y), state()) == pytest.approx([-0.3] * 2)


def test_mu_of_the_antisymmetric_field_can_be_positive_which_its_bound_says():
    field, y = random_field("antisymmetric", gain=5.0), state()
    assert (stability.log_norm(lambda y: field(0.0, y), y) > 0.5).all()


def test_gradient_flow_is_minus_a_gradient():
    field, y = random_field("gradient_flow"), state().requires_grad_()
    energy = F.relu(field.conv(y)).square().sum() / 2
    torch.testing.assert_close(-torch.autograd.grad(energy, y)[0], field(0.0, y), rtol=1e-12, atol=1e-12)
    J = dense(field, y.detach())
    torch.testing.assert_close(J, J.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("h", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("scheme", ["implicit_euler", "implicit_midpoint", "radau3"])
def test_algebraically_stable_steps_on_a_gradient_flow_are_non_expansive(scheme, h):
    field = random_field("gradient_flow", gain=8.0 if h == 0.1 else 3.0)  # h beyond explicit Euler's bound, but solvable
    a, b = state(2, seed=5), state(2, seed=6)
    stage = odenets.ODEStage(field, f"{scheme}(tol=1e-8,max_iterations=1000,solver=newton)", interval=h)
    after = stage(torch.cat([a, b]))
    assert stage.stats.converged.all()
    apart = (a - b).flatten(1).norm(dim=1)
    assert ((after[:2] - after[2:]).flatten(1).norm(dim=1) <= (1 + 1e-6) * apart).all()
    explicit = a + h * field(0.0, a) - b - h * field(0.0, b)
    assert h > field.explicit_step() and (explicit.flatten(1).norm(dim=1) > apart).all()


@pytest.mark.parametrize("gain", [0.5, 1.0, 4.0])
def test_explicit_euler_on_a_gradient_flow_is_non_expansive_up_to_its_step_and_not_much_beyond(gain):
    field, y = random_field("gradient_flow", gain=gain), state()
    with torch.no_grad():
        field.conv.bias.fill_(100.0)  # every unit is on: J = -K^T K, the worst case
    J, h = dense(field, y), field.explicit_step()
    norm = np.linalg.norm(np.eye(64) + h * J.numpy(), 2, axis=(1, 2))
    assert (norm <= 1 + 1e-12).all()
    assert (np.linalg.norm(np.eye(64) + 2.5 * h * J.numpy(), 2, axis=(1, 2)) > 1.1).all()


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (4, 2, 3, 3), (5, 5, 1, 1), (2, 3, 5, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_norm_of_a_convolution_is_bounded_and_nearly_met_on_large_images(shape, groups):
    weight = torch.randn(groups * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padding = [size // 2 for size in shape[2:]]

    def convolve(y):
        return F.conv2d(y, weight, padding=padding, groups=groups)

    norms = []
    for size in (3, 12):
        y = torch.zeros(1, groups * shape[1], size, size, dtype=torch.float64)
        J = torch.func.jacrev(convolve)(y).reshape(convolve(y).numel(), y.numel())
        norms.append(torch.linalg.matrix_norm(J, 2).item())
    bound = operator_bound(weight, groups).item()
    assert norms[0] <= norms[1] + 1e-12 and norms[1] <= bound + 1e-12 and bound < 1.25 * norms[1]


def test_the_symbol_between_the_samples_stays_below_the_bound():
    # A convolution whose symbol 1 + cos(w - w0) peaks halfway between two frequencies that are sampled.
    w0 = torch.tensor(torch.pi / 16)
    half = torch.polar(torch.tensor(0.5), w0)
    weight = torch.tensor([[half.real, -half.imag], [half.imag, half.real]]).double()  # a complex number as a 2 x 2 matrix
    kernel = torch.stack([weight, torch.eye(2, dtype=torch.float64), weight.mT], -1)[:, :, None, :]
    assert 2 <= operator_bound(kernel).item() <= 2 * 1.04


def states_apart(count=40, channels=4, size=3, seed=0):
    """Pairs of states, near and far."""
    generator = torch.Generator().manual_seed(seed)
    a, d = torch.randn(2, count, channels, size, size, generator=generator, dtype=torch.float64)
    return a, a + d * torch.randn(count, 1, 1, 1, generator=generator, dtype=torch.float64).mul(2).exp()


@pytest.mark.parametrize("spec", ["skew", "gradient_flow", "monotone"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), gain=st.floats(0.2, 4))
def test_the_constants_in_L2_hold(spec, seed, gain):
    field, (a, b) = random_field(spec, seed=seed, gain=gain), states_apart(seed=seed)
    constants, known = field.constants(2, (4, 3, 3)), field.constants(2)
    difference, slope = (a - b).flatten(1), (field(0.0, a) - field(0.0, b)).flatten(1)
    product, rounding = (difference * slope).sum(1), 1e-9 * (1 + slope.norm(dim=1) * difference.norm(dim=1))
    assert (product <= constants.mu * difference.square().sum(1) + rounding).all() and constants.mu == 0
    assert (product <= -constants.forward / 2 * slope.square().sum(1) + rounding).all()
    assert (slope.norm(dim=1) <= constants.lipschitz * difference.norm(dim=1) + rounding).all()
    assert (field(0.0, a).flatten(1).norm(dim=1) <= constants.magnitude * a.flatten(1).norm(dim=1) + constants.offset).all()
    assert constants.lipschitz <= known.lipschitz * 1.003 and constants.forward >= known.forward * 0.994
    assert constants.skew == (spec == "skew") and (product.abs() <= rounding).all() == constants.skew
    assert field.constants(float("inf")).mu == float("inf")  # nothing is said where nothing is proven


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), gain=st.floats(0.2, 4))
def test_the_constants_in_L_infinity_hold(seed, gain):
    field, (a, b) = random_field("inf_monotone", seed=seed, gain=gain), states_apart(seed=seed)
    constants = field.constants(float("inf"), (4, 3, 3))
    W = torch.func.jacrev(lambda y: F.conv2d(y, field.kernel(), padding=1))(a[0]).reshape(36, 36).detach()
    mu = (W.diagonal() + W.abs().sum(1) - W.diagonal().abs()).max()
    assert mu <= constants.mu == 0 and W.diagonal().max() < 0
    assert constants.forward == pytest.approx(1 / W.diagonal().abs().max().item(), rel=1e-9)
    difference, slope = (a - b).flatten(1), (field(0.0, a) - field(0.0, b)).flatten(1)
    apart = difference.abs().amax(1)
    assert ((difference + constants.forward * slope).abs().amax(1) <= apart * (1 + 1e-12)).all()
    assert (slope.abs().amax(1) <= constants.lipschitz * apart).all() and field.constants(2).mu == float("inf")
    assert (field(0.0, a).flatten(1).abs().amax(1) <= constants.magnitude * a.flatten(1).abs().amax(1) + constants.offset).all()


def test_inf_monotone_holds_for_float32_weights_as_they_are_rounded():
    torch.manual_seed(0)
    kernel = odenets.get_field("inf_monotone").build(basic_layers, 32).kernel().detach().double()
    channel = torch.arange(32)
    diagonal = kernel[channel, channel, 1, 1]
    assert (diagonal + kernel.abs().sum((1, 2, 3)) - diagonal.abs()).max() <= 0


def test_monotone_is_the_sum_of_its_parts():
    field, y = random_field("monotone"), state()
    torch.testing.assert_close(sum(part(0.0, y) for part in field.parts), field(0.0, y))
    with pytest.raises(odenets.InputError, match="p must be 2 or inf, got 1"):
        field.constants(1)
