import pytest
import torch

import odenets
from odenets.solve.nonlinear import Broyden


def _setting(device, generator):
    W = (0.4 * torch.randn(5, 5, generator=generator, dtype=torch.float64)).to(device).requires_grad_()
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    g = torch.randn(3, 5, generator=generator, dtype=torch.float64).to(device)
    return W, x, g


def _root(W, x, tol=1e-13, record=None):
    return odenets.root(lambda z, x: z - x - torch.tanh(z @ W), torch.zeros_like(x), Broyden(tol, 200), (x,), record=record)


def test_gradient_is_the_dense_transposed_solve(device, generator):
    W, x, g = _setting(device, generator)
    got_W, got_x = torch.autograd.grad(_root(W, x), (W, x), g)
    z = _root(W, x).detach()
    expected_W = torch.zeros_like(W)
    for row in range(3):
        slope = torch.autograd.functional.jacobian(lambda v: torch.tanh(v @ W.detach()), z[row])
        u = torch.linalg.solve((torch.eye(5, dtype=torch.float64, device=device) - slope).mT, g[row])
        assert torch.allclose(got_x[row], u, atol=1e-10)
        weight = W.detach().clone().requires_grad_()
        expected_W += torch.autograd.grad(torch.tanh(z[row] @ weight), weight, u)[0]
    assert torch.allclose(got_W, expected_W, atol=1e-10)


@pytest.mark.no_pretend
def test_gradcheck_and_forward_mode(device, generator):
    W, x, _ = _setting(device, generator)
    assert torch.autograd.gradcheck(_root, (W, x), check_forward_ad=True)


def test_unrolled_agrees_where_the_iteration_contracts(device, generator):
    W, x, g = _setting(device, generator)
    stage = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], "implicit(tol=1e-12,max_iterations=100)")
    (exact,) = torch.autograd.grad(stage(x), x, g)
    odenets.set_gradient(stage, "unrolled")
    (unrolled,) = torch.autograd.grad(stage(x), x, g)
    assert torch.allclose(exact, unrolled, atol=1e-8)


def test_unrolled_differentiates_the_iteration_that_was_computed(device, generator):
    """At a loose tolerance the unrolled gradient matches differences of the loose value, the exact one that of the root."""
    W, x, _ = _setting(device, generator)
    stage = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], "implicit(tol=0.2,solver=fixed_point)")
    odenets.set_gradient(stage, "unrolled")
    u = torch.randn(3, 5, generator=generator, dtype=torch.float64).to(device)
    (gradient,) = torch.autograd.grad(stage(x).sum(), x)
    with torch.no_grad():
        difference = (stage(x + 1e-6 * u).sum() - stage(x - 1e-6 * u).sum()) / 2e-6
    assert abs((gradient * u).sum() - difference) < 1e-6


@pytest.mark.parametrize("solver", ["broyden", "anderson", "newton"])
def test_all_solvers_share_one_gradient(solver, device, generator):
    W, x, g = _setting(device, generator)
    stage = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], f"implicit(tol=1e-12,max_iterations=100,solver={solver})")
    (gradient,) = torch.autograd.grad(stage(x), x, g)
    assert torch.allclose(gradient, torch.autograd.grad(_root(W, x), x, g)[0], atol=1e-9)


def test_gradient_error_follows_the_tolerance(device, generator):
    W, x, g = _setting(device, generator)
    (exact,) = torch.autograd.grad(_root(W, x), x, g)
    errors = [(torch.autograd.grad(_root(W, x, tol), x, g)[0] - exact).norm() / exact.norm() for tol in (1e-1, 1e-3, 1e-6)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


def test_backward_solve_is_recorded(device, generator):
    W, x, g = _setting(device, generator)
    record = []
    _root(W, x, record=record).backward(g)
    assert [solution.backward for solution in record] == [False, True]
    assert record[1].converged.all() and (record[1].iterations > 0).all()


def test_memory_of_a_training_step_does_not_grow_with_iterations(device, generator):
    """Tensors that the graph keeps, counted in bytes as they are saved."""
    W, x, _ = _setting(device, generator)

    def saved(tol):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            record = []
            _root(W, x, tol, record=record)
        return total, int(record[0].iterations.max())

    (loose, few), (tight, many) = saved(1e-1), saved(1e-13)
    assert many > 2 * few and tight == loose


def test_root_without_gradients_records_no_graph(device, generator):
    W, x, _ = _setting(device, generator)
    with torch.no_grad():
        assert not _root(W, x).requires_grad


@pytest.mark.parametrize("name", ["implicit", "gauss4", "rosenbrock_euler", "bdf2"])
def test_the_backward_pass_is_linear_in_what_comes_in(name, device, generator):
    """Saturated images have tiny gradients: they must not underflow into a solve that ends at once."""
    f = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).to(device)
    y = torch.randn(3, 5, generator=generator).to(device).requires_grad_()
    g = torch.randn(3, 5, generator=generator).to(device)
    stage = odenets.ODEStage([lambda t, y: f(y)], name)
    (reference,) = torch.autograd.grad(stage(y), y, g)
    (tiny,) = torch.autograd.grad(stage(y), y, 1e-30 * g)
    assert torch.allclose(1e30 * tiny, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["implicit", "gauss4", "bdf2", "rosenbrock_euler", "ros2", "exponential_euler"])
def test_nan_weights_are_an_error_not_an_identity(name, device):
    f = torch.nn.Linear(3, 3).to(device)
    torch.nn.init.constant_(f.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN or Inf"), torch.no_grad():
        odenets.ODEStage([lambda t, y: f(y)], name)(torch.ones(2, 3, device=device))


def test_a_nan_in_a_linear_system_never_counts_as_solved(device):
    from odenets.solve.krylov import gmres

    b = torch.ones(3, 4, device=device)
    b[1] = float("nan")
    solution = gmres(lambda v: 2 * v, b, 1e-6, 5)
    assert solution.converged.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["ie_skip", "implicit", "bdf2", "rosenbrock_euler"])
def test_detached_gradients_are_adjoint_too(name, device, generator):
    f = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).double().to(device)
    y, u, v = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64).to(device)
    stage = odenets.ODEStage([lambda t, y: f(y)], name)
    odenets.set_gradient(stage, "detached")
    value, Ju = torch.func.jvp(stage, (y,), (u,))
    _, pullback = torch.func.vjp(stage, y)
    assert Ju.norm() > 0 and abs((Ju * v).sum() - (u * pullback(v)[0]).sum()) < 1e-10
    odenets.set_scheme(stage, "explicit")
    assert torch.allclose(Ju, torch.func.jvp(stage, (y,), (u,))[1])
