"""Second and higher derivatives through a step, in every nesting that torch offers.

Oracles: central differences of first derivatives in float64, which other tests hold against differences of values; a dense
closed form on a linear field. A scheme whose first derivative is right and whose second is not fails here.
"""

import pytest
import torch
from solved import tight
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import odenets
from odenets.solve.krylov import gmres

NAMES = odenets.list_schemes()
SOLVING = [name for name in NAMES if odenets.get_scheme(name).implicit]
FEW = ["implicit_euler", "gauss4", "ros2", "bdf2"]


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.float64, generator=generator))

    def forward(self, t, y):
        return 0.2 * torch.tanh(y @ self.weight) * y


def _stage(name, field=None):
    return odenets.ODEStage([field or Field()], tight(name), substeps=1 + odenets.get_scheme(name).previous)


def _setting(device):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, dtype=torch.float64, generator=generator).to(device) for _ in range(4)]


def _penalty(loss, W, x):
    """|d loss/dx|^2, to be differentiated in W."""
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(x, W), x, create_graph=True)
    return g.square().sum()


def _close(got, wanted, tol=1e-6):
    assert (got - wanted).norm() <= tol * wanted.norm(), f"relative error {(got - wanted).norm() / wanted.norm():.1e}"


@pytest.mark.parametrize("loss", ["sum", "logits"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_penalty_in_a_stem_and_in_the_field(name, loss, device):
    """The step's cotangent is a constant where the loss is linear in its output; the adjoint still depends on the weights."""
    x, W, head, E = _setting(device)
    stage = _stage(name).to(device)
    weight = stage.fields[0].weight

    def run(x, W):
        y = stage(x @ W)
        return y.sum() if loss == "sum" else (y @ head)[:, 0].sum()

    W.requires_grad_()
    in_stem, in_field = torch.autograd.grad(_penalty(run, W, x), (W, weight))
    h, base = 1e-5, weight.detach().clone()
    differences = []
    for tensor in (W, weight):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * h * E)
            values.append(_penalty(run, W, x).item())
            with torch.no_grad():
                tensor.sub_(sign * h * E)
        differences.append((values[0] - values[1]) / (2 * h))
    assert torch.allclose(weight, base)
    for got, wanted in zip((in_stem, in_field), differences):
        assert (got * E).sum().item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", SOLVING)
def test_unrolled_agrees(name, device):
    x, W, _, _ = _setting(device)
    stage = _stage(name).to(device)
    found = []
    for gradient in ("exact", "unrolled"):
        odenets.set_gradient(stage, gradient)
        found.append(torch.autograd.functional.hessian(lambda x: stage(x @ W).sum(), x))
    _close(*found)


def test_dense_closed_form_on_a_linear_field(device):
    """y = x (I - M)^-1: the penalty of sum(y^3) and its derivative in M, without a solver or an implicit function."""
    x, M, _, _ = _setting(device)
    M = (0.3 * M).requires_grad_()
    identity = torch.eye(2, dtype=torch.float64, device=device)
    wanted = torch.autograd.grad(_penalty(lambda x, M: (x @ torch.linalg.inv(identity - M)).pow(3).sum(), M, x), M)[0]
    for name in ("implicit_euler", "rosenbrock_euler"):
        stage = _stage(name, lambda t, y: y @ M)
        _close(torch.autograd.grad(_penalty(lambda x, M, stage=stage: stage(x).pow(3).sum(), M, x), M)[0], wanted, 1e-9)


@pytest.mark.no_pretend
@pytest.mark.parametrize("name", FEW)
def test_every_nesting_of_transforms(name, device):
    x, W, u, _ = _setting(device)
    stage = _stage(name).to(device).requires_grad_(False)
    stage(x @ W)
    assert stage.stats.unconverged == 0

    def loss(x):
        return torch.sin(stage(x @ W)).sum()

    H = torch.stack(
        [
            (grad(loss)(x + 1e-5 * e) - grad(loss)(x - 1e-5 * e)) / 2e-5
            for e in torch.eye(4, dtype=x.dtype, device=device).view(4, 2, 2)
        ]
    ).view(2, 2, 2, 2)
    Hu = torch.einsum("abcd,cd->ab", H, u)
    for nested in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f)), lambda f: jacrev(jacfwd(f))):
        _close(nested(loss)(x), H)
    _close(torch.autograd.functional.hessian(loss, x), H)
    _close(grad(lambda x: (grad(loss)(x) * u).sum())(x), Hu)
    _close(grad(lambda x: jvp(loss, (x,), (u,))[1])(x), Hu)
    _close(jvp(grad(loss), (x,), (u,))[1], Hu)
    leaf = x.clone().requires_grad_()
    _close(torch.autograd.grad((grad(loss)(leaf) * u).sum(), leaf)[0], Hu)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf, u)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
        _close(torch.autograd.grad(tangent, leaf, retain_graph=True)[0], Hu)
        (pulled,) = torch.autograd.grad(loss(dual), dual)
        _close(torch.autograd.forward_ad.unpack_dual(pulled).tangent, Hu)


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("name", SOLVING)
def test_dual_numbers_in_the_field(name, watched, device):
    """Tangents of a tensor in the closure, beside a graph for torch.autograd and without one."""
    x, W, u, _ = _setting(device)
    W.requires_grad_(watched)
    stage = _stage(name, lambda t, y: 0.2 * torch.tanh(y @ held[0]) * y)
    held, values = [None], []
    for sign in (1, -1):
        held[0] = (W + sign * 1e-5 * u).detach()
        values.append(stage(x))
    with torch.autograd.forward_ad.dual_level():
        held[0] = torch.autograd.forward_ad.make_dual(W, u)
        _close(torch.autograd.forward_ad.unpack_dual(stage(x)).tangent, (values[0] - values[1]) / 2e-5)


@pytest.mark.parametrize("name", SOLVING)
def test_vmap(name, device):
    """Over states, and over the cotangents and tangents of jacrev and jacfwd; and per-sample gradients."""
    x, _, u, _ = _setting(device)
    stage = _stage(name).to(device)
    one = lambda x: stage(x[None])[0]  # noqa: E731
    assert torch.allclose(stage(x), vmap(one)(x))
    assert stage.stats.converged.shape == (1,) and stage.stats.unconverged == 0 and stage.stats.iterations.dtype == torch.int64
    wanted = torch.autograd.functional.jacobian(one, x[0])
    _close(jacrev(one)(x[0]).detach(), wanted)
    _close(jacfwd(one)(x[0]).detach(), wanted)
    (gradient,) = torch.autograd.grad((stage(leaf := x.clone().requires_grad_()) * u).sum(), leaf)
    _close(vmap(grad(lambda x, u: (one(x) * u).sum()))(x, u).detach(), gradient)
    _close(grad(lambda x: (vmap(one)(x) * u).sum())(x).detach(), gradient)
    _close(torch.autograd.grad((vmap(one)(leaf) * u).sum(), leaf)[0], gradient)


@pytest.mark.parametrize("name", FEW)
def test_parameters_by_functional_call(name, device):
    """A solve in a backward pass is that of the parameters given, not of those that the module has by then."""
    x, _, u, _ = _setting(device)
    stage = _stage(name).to(device)
    w = 2 * stage.fields[0].weight.detach()
    run = lambda w: functional_call(stage, {"fields.0.weight": w}, (x,))  # noqa: E731
    loss = lambda w: torch.sin(run(w)).sum()  # noqa: E731
    change = (loss(w + 1e-5 * u) - loss(w - 1e-5 * u)).item() / 2e-5
    assert (grad(loss)(w) * u).sum().item() == pytest.approx(change, rel=1e-6)
    assert jvp(loss, (w,), (u,))[1].item() == pytest.approx(change, rel=1e-6)
    Hu = (grad(loss)(w + 1e-5 * u) - grad(loss)(w - 1e-5 * u)) / 2e-5
    for nested in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))):
        _close(torch.einsum("abcd,cd->ab", nested(loss)(w), u), Hu)
    both = torch.stack([w, 0.5 * w])
    assert torch.allclose(vmap(run)(both), torch.stack([run(w), run(0.5 * w)]))
    wanted = torch.stack([grad(loss)(w), grad(loss)(0.5 * w)])
    _close(vmap(grad(loss))(both), wanted)
    _close(grad(lambda both: vmap(loss)(both).sum())(both), wanted)


def test_third_derivatives(device):
    x, W, u, _ = _setting(device)
    stage = _stage("implicit_euler").to(device).requires_grad_(False)

    def curvature(x):
        """d^2 loss in the direction u, twice."""
        return (grad(lambda x: (grad(lambda x: stage(x @ W).sum())(x) * u).sum())(x) * u).sum()

    wanted = (curvature(x + 1e-5 * u) - curvature(x - 1e-5 * u)) / 2e-5
    assert (grad(curvature)(x) * u).sum().item() == pytest.approx(wanted.item(), rel=1e-5)
    leaf = x.clone().requires_grad_()
    value = stage(leaf @ W).sum()
    for _ in range(3):
        value = (torch.autograd.grad(value, leaf, create_graph=True)[0] * u).sum()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_tensors_computed_before_a_field_holds_them(device):
    """Second derivatives in a tensor that is no leaf, and past it, where the state hangs on the same leaf."""
    x, _, u, _ = _setting(device)
    leaf = x.clone().requires_grad_()
    context = torch.cos(leaf).mean(0)
    stage = _stage("implicit_euler", lambda t, y: 0.3 * torch.tanh(y * context))

    def first(of):
        return torch.autograd.grad(torch.sin(stage(leaf * u)).sum(), of, create_graph=True)[0]

    def second():
        both = (first(context) * u[0]).sum(), (first(leaf) * u).sum()
        return [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in both]

    found = second()
    odenets.set_gradient(stage, "unrolled")
    wanted = second()
    for one, other in zip(found, wanted):
        _close(one, other)


def test_a_first_derivative_costs_what_it_did(device):
    """No evaluation of the field in a backward pass, no graph left behind, and the same gradient with and without one."""
    x, _, _, _ = _setting(device)
    for name in ("implicit_euler", "gauss4", "bdf2"):
        stage, calls = _stage(name).to(device).float(), []
        stage.fields[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        leaf = x.float().requires_grad_()
        value = stage(leaf).sum()
        before = len(calls)
        (plain,) = torch.autograd.grad(value, leaf)
        assert len(calls) == before and not plain.requires_grad
        (again,) = torch.autograd.grad(stage(leaf).sum(), leaf, create_graph=True)
        assert torch.allclose(plain, again, rtol=1e-6)


def test_what_cannot_be_differentiated_says_so(device):
    x, _, u, _ = _setting(device)
    stage = _stage("implicit_euler").to(device)
    with pytest.raises(RuntimeError, match="use torch.func|torch.func.jacrev"):
        torch.autograd.functional.jacobian(stage, x, vectorize=True)
    weights = torch.stack([stage.fields[0].weight.detach()] * 2)
    _, pullback = vjp(lambda w: vmap(lambda w: functional_call(stage, {"fields.0.weight": w}, (x,)))(w).sum(), weights)
    with pytest.raises(RuntimeError, match="vmap maps over"):
        pullback(torch.ones((), dtype=x.dtype, device=device))
    leaf = x.clone().requires_grad_()
    gradient = grad(lambda x: stage(x).sum())(leaf)
    with pytest.raises(RuntimeError, match="for create_graph=True use"):
        torch.autograd.grad((gradient * u).sum(), leaf, create_graph=True)
    with pytest.raises(ValueError, match="vmap hides"):
        vmap(odenets.ODEStage([Field().to(device)], "adaptive"))(x[:, None])


class _Tanh(nn.Module):
    """tanh(A y): a row of zeros rests; with `dead`, relu(y) in place of y, so that a row of negative numbers has J = 0."""

    def __init__(self, width, dead=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, width, generator=generator, dtype=torch.float64) / (2 * width**0.5))
        self.dead = dead

    def forward(self, t, y):
        return torch.tanh((torch.relu(y) if self.dead else y) @ self.weight)


RESTING = ["rosenbrock_euler", "ros2", "exponential_euler", "sdirk2", "bdf2", "implicit_midpoint", "implicit"]
RESTING += [f"implicit(solver={solver})" for solver in ("newton", "semismooth", "anderson")]


@pytest.mark.parametrize("dead", [False, True], ids=["equilibrium", "no Jacobian"])
@pytest.mark.parametrize("spec", RESTING)
def test_a_sample_that_rests_has_derivatives_among_others_that_do_not(spec, dead, generator):
    x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    x[2] = -x[2].abs() if dead else 0
    stage = odenets.ODEStage([_Tanh(6, dead)], spec)
    for gradient in ("exact", "unrolled"):
        odenets.set_gradient(stage, gradient)
        whole = torch.autograd.functional.hessian(lambda x: stage(x).square().sum(), x)
        alone = torch.autograd.functional.hessian(lambda x: stage(x).square().sum(), x[:1])
        assert whole.isfinite().all()
        _close(whole[0, :, 0], alone[0, :, 0], 1e-2)


@pytest.mark.parametrize("spec", ["implicit(tol=1e-3,backward_stop=batch)", "rosenbrock_euler(backward_stop=batch)"])
def test_rows_that_stop_together_where_one_is_done_before(spec, generator):
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    x[3] = -x[3].abs()
    stage = odenets.ODEStage([_Tanh(6, dead=True)], spec)
    x.requires_grad_()
    plain = torch.autograd.grad(stage(x).square().sum(), x)[0]
    _close(torch.autograd.grad(stage(x).square().sum(), x, create_graph=True)[0], plain, 1e-2)
    _close(torch.func.grad(lambda x: stage(x).square().sum())(x.detach()), plain, 1e-2)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("every", [1, 7])
def test_a_singular_operator_has_no_solution_by_rounding(every, recorded):
    shift = torch.diag(torch.ones(2, dtype=torch.float64), 1)
    b = torch.tensor([[0.0, 0.0, 1.2], [1.0, 0.5, 0.0]], dtype=torch.float64, requires_grad=recorded)
    found = gmres(lambda v: v @ shift.T, b, 1e-8, 10, every=every)
    assert not found.converged.any() and found.value.isfinite().all()  # the Krylov space of b holds none


@pytest.mark.parametrize("memory", [3, 30])
def test_a_row_that_is_solved_before_a_restart(memory):
    generator = torch.Generator().manual_seed(0)
    A = torch.eye(8, dtype=torch.float64) + torch.randn(2, 8, 8, generator=generator, dtype=torch.float64) / 5
    A[1] = torch.eye(8)
    b = torch.randn(2, 8, generator=generator, dtype=torch.float64, requires_grad=True)

    def solve(b):
        return gmres(lambda v: torch.einsum("bij,bj->bi", A, v), b, 1e-10, 90, memory=memory).value

    first = torch.autograd.grad(solve(b).pow(3).sum(), b, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), b)[0]
    assert first.isfinite().all() and second.isfinite().all()
    x = torch.linalg.solve(A, b.detach())
    _close(first, torch.linalg.solve(A.mT, 3 * x**2), 1e-6)
    _close(second, torch.linalg.solve(A.mT, 6 * x * torch.linalg.solve(A, torch.ones_like(x))), 1e-5)
