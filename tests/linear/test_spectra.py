"""Leading eigenvalues, log-norms and norms against LAPACK: a convolutional block, normal and non-normal matrices."""

import numpy as np
import pytest
import torch

import odenets
import stability


def linear(M):
    return lambda y: y @ M.T.to(y)


def block(device, dtype=torch.float64):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(in_channels=1).to(device, dtype)
    return lambda y: odenets.stages(net)["blocks.0"].fields[0](0.0, y)


def dense(f, y):
    n = y.numel()
    return torch.func.jacrev(f)(y).reshape(n, n).detach().cpu().numpy()


def leading(values, k, which):
    return values[np.argsort(-(abs(values) if which == "LM" else values.real), kind="stable")[:k]]


def assert_same_set(found, expected, atol):
    distance = abs(np.asarray(found)[:, None] - np.asarray(expected))
    assert distance.min(1).max() < atol


@pytest.fixture(scope="module")
def states():
    return torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("which", ["LM", "LR"])
def test_conv_block_against_lapack(which, states, device):
    f, y = block(device), states.to(device)
    e = stability.spectrum(f, y, k=5, which=which)
    assert e.values.shape == e.residuals.shape == (3, 5) and e.values.is_complex()
    assert e.converged.all() and e.residuals.max() <= 1e-8 and e.products < 200
    for i in range(3):
        expected = np.linalg.eigvals(dense(f, y[i : i + 1]))
        key = abs if which == "LM" else np.real
        np.testing.assert_allclose(key(e.values[i].numpy()), key(leading(expected, 5, which)), atol=1e-7)
        assert_same_set(e.values[i], expected, 1e-7)


def test_float32_reaches_its_tolerance(states):
    e = stability.spectrum(block("cpu", torch.float32), states.float(), k=4)
    assert e.converged.all() and e.residuals.max() <= 1e-4
    exact = stability.spectrum(block("cpu"), states, k=4)
    np.testing.assert_allclose(abs(e.values), abs(exact.values), rtol=1e-3)


def test_log_norm_and_norm_against_lapack(states, device):
    f, y = block(device), states.to(device)
    matrices = [dense(f, y[i : i + 1]) for i in range(3)]
    rightmost = [np.linalg.eigvalsh((D + D.T) / 2)[-1] for D in matrices]
    np.testing.assert_allclose(stability.log_norm(f, y), rightmost, atol=1e-10)
    np.testing.assert_allclose(stability.spectral_norm(f, y), [np.linalg.norm(D, 2) for D in matrices], atol=1e-10)


@pytest.mark.parametrize("scheme", ["implicit_euler(tol=1e-12)", "ie_skip(gamma=0.1)", "gauss4(tol=1e-12)"])
def test_through_a_stage(scheme):
    f = block("cpu")
    stage = odenets.ODEStage(lambda t, y: f(y), scheme)
    y = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    e, norm = stability.spectrum(stage, y, k=3), stability.spectral_norm(stage, y)
    for i in range(2):
        D = stability.jacobian(stage, y[i : i + 1]) @ np.eye(64)
        assert_same_set(e.values[i], np.linalg.eigvals(D), 1e-6)
        assert norm[i] == pytest.approx(np.linalg.norm(D, 2), rel=1e-7)


def test_normal_matrix_beyond_one_krylov_space(generator):
    Q, _ = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))
    eigenvalues = torch.cat([torch.tensor([5.0, -4.9, 4.8]), torch.linspace(-4, 4, 297)]).double()
    M = Q @ torch.diag(eigenvalues) @ Q.T
    y = torch.zeros(2, 300, dtype=torch.float64)
    e = stability.spectrum(linear(M), y, k=3)
    np.testing.assert_allclose(e.values.real, [[5, -4.9, 4.8]] * 2, atol=1e-10)
    e = stability.spectrum(linear(M), y, k=2, which="LR")
    np.testing.assert_allclose(e.values.real, [[5, 4.8]] * 2, atol=1e-10)
    assert not stability.spectrum(linear(M), y, k=3, dimension=6, max_products=30).converged.all()
    with pytest.warns(RuntimeWarning, match="2 of 2 samples"):
        assert (stability.log_norm(linear(M), y, dimension=6, max_products=30) <= 5).all()


@pytest.mark.parametrize(
    "name, M",
    [
        ("jordan", torch.diag(torch.full((60,), 0.5)) + torch.diag(torch.ones(59), 1)),
        ("nilpotent", torch.diag(torch.ones(59), 1)),
        ("grcar", sum(torch.diag(torch.ones(60 - abs(d)), d) for d in (0, 1, 2, 3)) - torch.diag(torch.ones(59), -1)),
    ],
)
@pytest.mark.parametrize("which", ["LM", "LR"])
def test_non_normal_matrices_get_backward_stable_eigenvalues(name, M, which):
    # Their eigenvalues move by far more than rounding; what can be asked is that each is exact for a matrix close by.
    M = M.double()
    e = stability.spectrum(linear(M), torch.zeros(1, 60, dtype=torch.float64), k=6, which=which)
    assert e.converged.all()
    for value in e.values[0].numpy():
        assert np.linalg.svd(M.numpy() - value * np.eye(60), compute_uv=False)[-1] < 1e-9


def test_multiple_eigenvalues_and_invariant_subspaces_are_complete():
    M = torch.diag(torch.tensor([3.0, 3, 3, 2, 2, 1, 0, 0]))
    e = stability.spectrum(linear(M), torch.zeros(1, 8, dtype=torch.float64), k=8)
    np.testing.assert_allclose(e.values[0].real, [3, 3, 3, 2, 2, 1, 0, 0], atol=1e-12)
    assert e.converged.all()
    identity = stability.spectrum(lambda y: -y, torch.zeros(2, 500, dtype=torch.float64), k=4)
    np.testing.assert_allclose(identity.values, -np.ones((2, 4)), atol=1e-12)
    zero = stability.spectrum(lambda y: 0 * y, torch.zeros(1, 5, dtype=torch.float64), k=5)
    assert (zero.values == 0).all() and zero.converged.all()


def test_a_sample_does_not_depend_on_its_batch(states):
    f = block("cpu")
    together, alone = stability.spectrum(f, states, k=3), stability.spectrum(f, states[1:2], k=3)
    np.testing.assert_allclose(together.values[1], alone.values[0], atol=1e-9)


def test_small_memory_splits_the_batch(states):
    expected = stability.spectrum(block("cpu"), states, k=2).values
    np.testing.assert_allclose(stability.spectrum(block("cpu"), states, k=2, memory=1).values, expected, atol=1e-9)
    assert stability.ritz_values(block("cpu"), states, dimension=5).shape == (3, 5)


def test_ritz_values_lie_in_the_numerical_range_and_are_exact_when_complete(states):
    f = block("cpu")
    r = stability.ritz_values(f, states, dimension=30)
    assert r.shape == (3, 30) and r.is_complex()
    assert (r.real.amax(1) <= stability.log_norm(f, states) + 1e-12).all()
    M = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same_set(stability.ritz_values(linear(M), torch.zeros(1, 7, dtype=M.dtype))[0], np.linalg.eigvals(M), 1e-10)


def test_log_norm_may_be_negative_and_bounds_the_growth_of_differences():
    M = torch.tensor([[-1.0, 5], [0, -2]]).double()
    assert stability.log_norm(linear(M), torch.zeros(1, 2).double())[0] == pytest.approx((26**0.5 - 3) / 2)
    assert stability.log_norm(lambda y: -3 * y, torch.zeros(2, 4).double()) == pytest.approx([-3, -3])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: stability.spectrum(torch.sin, torch.rand(1, 3), k=4), "from 1 to the 3"),
        (lambda: stability.spectrum(torch.sin, torch.rand(1, 3), k=0), "k must"),
        (lambda: stability.spectrum(torch.sin, torch.rand(1, 3), k=1, which="SM"), "LR"),
        (lambda: stability.spectrum(torch.sin, torch.rand(0, 3), k=1), "no entries"),
        (lambda: stability.log_norm(torch.sin, torch.full((1, 3), float("inf"))), "NaN or Inf"),
        (lambda: stability.spectral_norm(torch.sin, torch.rand(1, 3), tol=0), "tol"),
        (lambda: stability.ritz_values(torch.sin, torch.rand(1, 3), dimension=0), "dimension"),
        (lambda: stability.spectrum(lambda y: y[:, :1], torch.rand(1, 3), k=1), "shape"),
        (lambda: stability.spectrum(torch.log, -torch.rand(1, 3), k=1), "NaN"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
