"""The zoo of non-expansive layers is a table, field x scheme: each layer by its own formula against a step."""

import math

import pytest
import torch
from certified import SHAPE, field, size
from torch.nn import functional as F

import odenets

N = math.prod(SHAPE)
TIGHT = "tol=1e-13,max_iterations=400,solver=newton"


def states(count=5, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(linear):
    """The matrix of a linear map of states."""
    return linear(torch.eye(N, dtype=torch.float64).view(N, *SHAPE)).reshape(N, -1).mT.detach()


def through(matrix, y):
    return (y.flatten(1) @ matrix.mT).view_as(y)


def step(f, scheme, h, y):
    with torch.no_grad():
        return odenets.ODEStage(f, scheme, interval=h)(y)


def test_convex_potential_layer_is_explicit_euler_on_a_gradient_flow_at_its_limit():
    """Meunier et al. (2022), equation 5: y - 2/||K||^2 K^T relu(K y + b)."""
    flow, y = field("gradient_flow"), states()
    K = dense(lambda v: F.conv2d(v, flow.conv.weight, padding=1))
    b = flow.conv.bias.repeat_interleave(SHAPE[1] * SHAPE[2])
    limit = 2 / torch.linalg.matrix_norm(K, 2) ** 2
    layer = y.flatten(1) - limit * torch.relu(y.flatten(1) @ K.mT + b) @ K
    torch.testing.assert_close(step(flow, "explicit", limit.item(), y).flatten(1), layer, rtol=0, atol=1e-12)
    assert flow.constants(2, SHAPE).forward == pytest.approx(limit.item(), rel=0.01)


def test_cayley_layer_is_midpoint_on_a_skew_field():
    """Trockman & Kolter (2021): (I + A)^-1 (I - A) with A skew; here A = -h S/2."""
    turn, y, h = field("skew"), states(), 1.7
    S, identity = dense(lambda v: turn(0.0, v)), torch.eye(N, dtype=torch.float64)
    Q = torch.linalg.solve(identity - h / 2 * S, identity + h / 2 * S)
    torch.testing.assert_close(Q.mT @ Q, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(step(turn, f"implicit_midpoint({TIGHT})", h, y), through(Q, y), rtol=0, atol=1e-6)


def test_skew_orthogonal_convolution_is_the_exponential_scheme_on_a_skew_field():
    """Singla & Feizi (2021): exp(S); their truncated series is within its remainder, and not orthogonal."""
    turn, y = field("skew", gain=0.5), states()
    S = dense(lambda v: turn(0.0, v))
    torch.testing.assert_close(
        step(turn, "exponential_euler", 1.0, y), through(torch.linalg.matrix_exp(S), y), rtol=0, atol=1e-6
    )
    series = term = y
    for k in range(1, 7):
        term = turn(0.0, term) / k
        series = series + term
    norm = torch.linalg.matrix_norm(S, 2).item()
    error = size(series - step(turn, "exponential_euler", 1.0, y), 2)
    assert (error <= norm**7 / math.factorial(7) * size(y, 2) + 1e-9).all() and error.max() > 1e-9


def test_block_reflector_is_the_limit_of_midpoint_on_a_linear_gradient_flow():
    """BRO (2024): I - 2 K^T (K K^T)^-1 K; reached as 1/h, as CERTIFICATES says at h = 10, 1e2, 1e4."""
    K = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = y - 2 * y @ K.mT @ torch.linalg.solve(K @ K.mT, K)
    errors = []
    for h in (1e1, 1e2, 1e4, 1e7):
        got = step(lambda t, y: -y @ K.mT @ K, f"implicit_midpoint({TIGHT})", h, y)
        errors.append((got - wanted).norm(dim=1).max().item())
    assert errors[1] < 0.2 * errors[0] and errors[2] < 0.02 * errors[1] and errors[3] < 1e-6


@pytest.mark.parametrize("h", [0.3, 3.0, 100.0])
def test_proximal_layer_is_implicit_euler_on_a_gradient_flow(h):
    """prox of h phi, phi = |relu(K z + b)|^2/2: the zero of the gradient of |z - y|^2/2 + h phi(z), by autograd."""
    flow, y = field("gradient_flow"), states()
    z = step(flow, f"implicit_euler({TIGHT})", h, y).requires_grad_()
    objective = (z - y).square().sum() / 2 + h * F.relu(flow.conv(z)).square().sum() / 2
    (gradient,) = torch.autograd.grad(objective, z)
    assert gradient.abs().max() < 1e-6 and ((z - y).abs().max() > 0.01)


@pytest.mark.parametrize("h", [0.3, 3.0, 100.0])
def test_the_negative_theorem(h):
    """Implicit Euler is an explicit step of size h on another convex potential, the Moreau envelope, whose limit is 2h: the
    gradient g = (y - prox y)/h of the envelope is cocoercive, <g(x) - g(y), x - y> >= h ||g(x) - g(y)||^2."""
    flow, x, y = field("gradient_flow", gain=2.0), states(40), states(40, seed=1)
    ends = step(flow, f"implicit_euler({TIGHT})", h, torch.cat([x, y]))
    g = (torch.cat([x, y]) - ends) / h
    torch.testing.assert_close(torch.cat([x, y]) - h * g, ends)
    dg, d = (g[:40] - g[40:]).flatten(1), (x - y).flatten(1)
    assert ((dg * d).sum(1) >= h * dg.square().sum(1) * (1 - 1e-9)).all()
    # g is a gradient: its Jacobian is symmetric, with eigenvalues in [0, 1/h].
    stage = odenets.ODEStage(flow, f"implicit_euler({TIGHT})", interval=h)
    J = torch.func.jacrev(lambda v: (v - stage(v[None])[0]) / h)(x[0]).reshape(N, N).detach()
    assert (J - J.mT).abs().max() < 1e-8 / h and torch.linalg.eigvalsh((J + J.mT) / 2).max() <= (1 + 1e-8) / h


def test_relu_is_a_resolvent():
    """The projection on y >= 0, as implicit Euler on the pull towards it, f = relu(-y), in the limit of large steps."""
    y = states()
    assert (step(lambda t, v: F.relu(-v), f"implicit_euler({TIGHT})", 1e8, y) - F.relu(y)).abs().max() < 1e-6
