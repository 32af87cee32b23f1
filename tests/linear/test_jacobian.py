"""The Jacobian as an operator: against dense ones, through the stage of every scheme, on every device."""

from pathlib import Path

import numpy as np
import pytest
import torch

import odenets
import stability

ACCURATE = {
    name: f"{name}(tol=1e-13,max_iterations=300)" if odenets.get_scheme(name).implicit else name
    for name in odenets.list_schemes()
}


def conv_field(device, channels=4, seed=0):
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
    return torch.nn.Sequential(torch.nn.GroupNorm(1, channels), torch.nn.Tanh(), conv).to(device, torch.float64)


def dense(f, y):
    n = y.numel()
    return torch.func.jacrev(f)(y).reshape(n, n).detach().cpu().numpy()


def matrix(n, seed=0, size=0.3):
    return size * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_products_agree_with_the_dense_jacobian(device, generator):
    f = conv_field(device)
    y = torch.rand(1, 4, 5, 5, generator=generator, dtype=torch.float64).to(device)
    J, D = stability.jacobian(f, y, chunk=7), dense(f, y)
    assert J.shape == D.shape and J.dtype == np.float64
    V = np.random.default_rng(0).normal(size=(100, 20))
    np.testing.assert_allclose(J @ V, D @ V, atol=1e-12)
    np.testing.assert_allclose(J.rmatmat(V), D.T @ V, atol=1e-12)
    np.testing.assert_allclose(J.matvec(V[:, 0]), D @ V[:, 0], atol=1e-12)
    np.testing.assert_allclose(J.rmatvec(V[:, 0]), D.T @ V[:, 0], atol=1e-12)
    np.testing.assert_allclose(J.T @ V, D.T @ V, atol=1e-12)
    np.testing.assert_allclose(J @ (V[:, 0] + 1j * V[:, 1]), D @ (V[:, 0] + 1j * V[:, 1]), atol=1e-12)
    assert (J @ np.empty((100, 0))).shape == (100, 0)
    assert all(parameter.grad is None for parameter in f.parameters())


def test_dtype_is_that_of_the_state(device):
    J = stability.jacobian(conv_field(device).float(), torch.rand(1, 4, 3, 3, device=device))
    assert J.dtype == np.float32 and (J @ np.ones(36, np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", odenets.list_schemes())
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_adjoint_identity_through_every_scheme(name, mode, device):
    M = matrix(6).to(device)
    stage = odenets.ODEStage(
        [lambda t, y: torch.tanh(y @ M.T) * torch.as_tensor(1 + t), lambda t, y: torch.sin(y @ M)], ACCURATE[name], substeps=2
    )
    rng = np.random.default_rng(0)
    with mode():
        y = torch.linspace(-1, 1, 6, dtype=torch.float64, device=device)[None]
        J, u, v = stability.jacobian(stage, y), rng.normal(size=6), rng.normal(size=6)
        forward, back = J @ u, J.rmatvec(v)
    assert forward @ v == pytest.approx(u @ back, rel=1e-9)
    if name != "adaptive":  # its steps may change with the state, hence its differences jump

        def at(s):
            return stage(y + s * torch.as_tensor(u).to(y))[0].detach().cpu().numpy()

        np.testing.assert_allclose(forward, (at(1e-5) - at(-1e-5)) / 2e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", [name for name in odenets.list_schemes() if name != "adaptive" and not odenets.get_scheme(name).previous]
)
def test_eigenvalues_of_a_step_on_a_linear_field(name):
    M = matrix(6)
    if name == "ie_skip":
        M = M - M.T - 0.2 * torch.eye(6, dtype=M.dtype)  # R(h lambda) holds for normal matrices only
    stage = odenets.ODEStage(lambda t, y: y @ M.T, ACCURATE[name], interval=0.7)
    found = np.linalg.eigvals(stability.jacobian(stage, torch.full((1, 6), 0.1, dtype=M.dtype)) @ np.eye(6))
    expected = odenets.get_scheme(name).amplification(0.7 * np.linalg.eigvals(M.numpy()))
    assert abs(found[:, None] - expected).min(0).max() < 1e-9 and abs(found[:, None] - expected).min(1).max() < 1e-9


def test_ie_skip_on_a_non_normal_matrix_follows_its_matrix_formula():
    M, gamma, I = matrix(6, size=0.5), 0.1, torch.eye(6, dtype=torch.float64)
    stage = odenets.ODEStage(lambda t, y: y @ M.T, f"ie_skip(gamma={gamma})")
    J = stability.jacobian(stage, torch.ones(1, 6, dtype=M.dtype))
    np.testing.assert_allclose(J @ np.eye(6), (I + M + 2 * gamma * (I - M).T @ M @ M).numpy(), atol=1e-12)


@pytest.mark.parametrize("iterations, theta", [(1, 1.0), (3, 0.5)])
def test_ie_skip_through_group_norm(iterations, theta):
    # torch has no forward mode for GroupNorm's backward pass, which this step holds: the double vjp stands in.
    f = conv_field("cpu")
    stage = odenets.ODEStage(lambda t, y: f(y), f"ie_skip(gamma=0.1,iterations={iterations},theta={theta})")
    y = torch.rand(1, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    J, u = stability.jacobian(stage, y), np.random.default_rng(0).normal(size=36)
    move = 1e-5 * torch.as_tensor(u).view_as(y)
    difference = (stage(y + move) - stage(y - move)).detach().numpy().ravel() / 2e-5
    np.testing.assert_allclose(J @ u, difference, atol=1e-7)
    np.testing.assert_allclose(J @ np.eye(36), J.rmatmat(np.eye(36)).T, atol=1e-12)


class Opaque(torch.autograd.Function):
    """y^2 with a right backward pass that cannot itself be differentiated, and no forward mode."""

    @staticmethod
    def forward(ctx, y):
        ctx.y = y.detach()
        return y**2

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.y * g.detach()


def test_a_forward_product_that_cannot_be_had_is_refused_not_wrong():
    def f(y):
        return y + Opaque.apply(y)  # the double vjp sees the first term only

    J = stability.jacobian(f, torch.full((1, 3), 2.0))
    np.testing.assert_allclose(J.rmatvec(np.ones(3)), 5)
    with pytest.raises(RuntimeError, match="setup_context"):
        J.matvec(np.ones(3))


@pytest.mark.parametrize(
    "f, y, message",
    [
        (torch.sin, torch.rand(2, 3), "one sample"),
        (torch.sin, torch.tensor([[1.0, float("nan")]]), "NaN"),
        (torch.sin, torch.ones(1, 2, dtype=torch.int64), "floating"),
        (torch.sin, torch.ones(1, 0), "no entries"),
        (lambda y: y[:, :2], torch.rand(1, 3), "keep the shape"),
        (lambda y: y / 0 * 0, torch.rand(1, 3), "NaN"),
        (lambda y: torch.sin(y.detach()), torch.rand(1, 3), "autograd"),
        (lambda y: y.double(), torch.rand(1, 3), "float32 to torch.float64"),
        (torch.nn.BatchNorm1d(3), torch.rand(1, 3), "training mode"),
    ],
)
def test_bad_input(f, y, message):
    with pytest.raises(ValueError, match=message):
        stability.jacobian(f, y)


def test_dense_jacobians_of_a_batch(device, generator):
    f, y = conv_field(device), torch.rand(3, 4, 3, 3, generator=generator, dtype=torch.float64).to(device)
    found = stability.dense_jacobians(f, y, rows=21)  # 7 rows at a time of 36
    for i in range(3):
        np.testing.assert_allclose(found[i].cpu(), dense(f, y[i : i + 1]), atol=1e-13)


def test_samples_that_mix_are_refused():
    norm, y = torch.nn.BatchNorm1d(3), torch.rand(4, 3)
    for f in (norm, lambda y: norm(y) + y):
        with pytest.raises(ValueError, match=r"BatchNorm in training mode.*eval\(\)"):
            stability.spectrum(f, y, k=1)
    norm.eval()
    largest = float((norm.running_var + norm.eps).rsqrt().max())
    np.testing.assert_allclose(stability.spectrum(norm, y, k=1).values.real, np.full((4, 1), largest), rtol=1e-4)


def test_one_pair_of_products_stands_in_the_package():
    """Both ways from one linearisation, checked against each other: `linear/jacobian.py`.

    Beside it stand a field that a solver differentiates again (growth), J^T v for the weights of a penalty, whose J v is a
    difference of values, and gradients of a loss (attacks) and of a margin (certificates).
    """
    package = Path(stability.__file__).parent
    products = ("torch.func.jvp(", "torch.func.vjp(", "torch.func.linearize(", "autograd.grad(", "functional.jvp(")
    found = {str(p.relative_to(package)) for p in package.rglob("*.py") if any(word in p.read_text() for word in products)}
    allowed = {"network/growth.py", "network/penalty.py", "attacks/losses.py", "certificates/tightness.py"}
    assert found == {"linear/jacobian.py", *allowed}
    assert "autograd.grad(" not in (package / "network/growth.py").read_text()
