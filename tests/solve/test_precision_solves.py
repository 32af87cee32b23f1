"""Solves under autocast and in half precision. Oracle: the float32 or float64 solve of the same network."""

from copy import deepcopy
from threading import Event, Thread

import pytest
import torch
from torch import nn

import odenets
from odenets.solve.nonlinear import Broyden
from odenets.solve.precision import float32_products, unrounded
from stability.masking.subject import cold_judge

SOLVING = [name for name in odenets.list_schemes() if odenets.get_scheme(name).evaluations is None]
LOW = [torch.bfloat16, torch.float16]


class Field(nn.Module):
    """0.3 tanh(A y) + b, with a parameter, a buffer and an operation that autocast would round."""

    def __init__(self, width=6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(width, width, bias=False)
        self.linear.weight.data = torch.randn(width, width, generator=generator) / width**0.5
        self.register_buffer("offset", torch.randn(width, generator=generator) / 4)

    def forward(self, t, y):
        return 0.3 * torch.tanh(self.linear(y)) + self.offset


def _tight(name):
    scheme = odenets.get_scheme(name)
    return scheme if name == "adaptive" else scheme.tightened(1e-6, 100)


def _stage(name, substeps=2):
    return odenets.ODEStage([Field(), Field()], _tight(name), substeps=substeps)


def _states():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SOLVING)
def test_autocast_changes_no_bit_of_a_solve(name):
    outcomes = []
    for enabled in (False, True):
        stage, y = _stage(name), _states().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = stage(y)
        value.square().sum().backward()
        outcomes.append([value, y.grad, *(p.grad for p in stage.parameters()), stage.stats.residual, stage.stats.converged])
    for plain, within in zip(*outcomes):
        assert torch.equal(plain, within)


def test_a_backward_solve_within_autocast_is_a_true_one():
    """The products of the rest of the graph are then autograd's, which autocast rounds; the linear solve is not rounded."""
    gradients = []
    for enabled in (False, True):
        stage, y = odenets.ODEStage([Field()], "implicit(tol=1e-6)"), _states().requires_grad_()
        value = stage(y)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value.sum().backward()
        (solve,) = (solution for solution in stage.stats.solutions if solution.backward)
        gradients.append((solve.iterations, solve.residual))
        assert solve.converged.all()
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-3)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", SOLVING)
def test_half_precision_solves_as_float32_does_and_rounds_once(name, dtype):
    stage = _stage(name).to(dtype)
    exact, y = deepcopy(stage).float(), _states().to(dtype).requires_grad_()
    wanted = y.detach().float().requires_grad_()
    value, reference = stage(y), exact(wanted)
    assert value.dtype == dtype and torch.equal(value, reference.to(dtype))
    assert stage.stats.converged.all() and torch.equal(stage.stats.residual, exact.stats.residual)
    weights = torch.linspace(-1, 1, value.numel()).view_as(value).to(dtype)
    (value * weights).sum().backward()
    (reference * weights.float()).sum().backward()
    for ours, theirs in zip(
        [y.grad, *(p.grad for p in stage.parameters())], [wanted.grad, *(p.grad for p in exact.parameters())]
    ):
        torch.testing.assert_close(ours.float(), theirs, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    states = stage(y, trajectory=True)
    assert states.dtype == dtype and torch.equal(states[0], y) and torch.equal(states[-1], value)


@pytest.mark.parametrize("dtype", [None, *LOW])
@pytest.mark.parametrize("name", ["implicit_euler", "sdirk2", "gauss4", "bdf2", "ros2"])
def test_the_residual_reported_is_the_true_one(name, dtype):
    """Residuals of the stage equations, computed anew in float64 at what the solver returned; here of implicit Euler's."""
    stage, y = odenets.ODEStage([Field()], odenets.get_scheme(name).tightened(1e-3, 30)), _states()
    if dtype is not None:
        stage, y = stage.to(dtype), y.to(dtype)
    exact = deepcopy(stage).double()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        value = stage(y)
    odenets.set_scheme(exact, odenets.get_scheme(name).tightened(1e-12, 200))
    with torch.no_grad():
        root = exact(y.double())
    assert stage.stats.converged.all() and 0 < stage.stats.residual.max() <= 1.01e-3
    # At h ||J|| < 1 a relative residual of 1e-3 is an error of a few thousandths of the step, beside the result's rounding.
    rounding = torch.finfo(dtype or torch.float32).eps * root.norm(dim=1)
    assert ((value.double() - root).norm(dim=1) <= 5e-3 * (root - y.double()).norm(dim=1) + rounding).all()
    if name == "implicit_euler" and dtype is None:
        field, z = exact.fields[0], value.double()
        residual = (z - y.double() - field(0.0, z)).norm(dim=1) / field(0.0, y.double()).norm(dim=1)
        torch.testing.assert_close(stage.stats.residual.double(), residual, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("around", ["autocast", "bfloat16", "half"])
@pytest.mark.parametrize("name", ["implicit_euler", "sdirk2"])
def test_what_is_not_solved_is_unconverged_and_not_trusted(name, around):
    """An expanding field, |h J| = 20 with a cap of 3 iterations: no dtype may call that solved."""
    net = odenets.ode_resnet_small(num_classes=4, in_channels=1, scheme=f"{name}(tol=1e-6,max_iterations=3)").eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for stage in odenets.stages(net).values():
        for parameter in stage.parameters():
            parameter.data.mul_(3.0)
    if around != "autocast":
        net, x = getattr(net, around)(), getattr(x, around)()
    exact = deepcopy(net).float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
            net(x)
        exact(x.float())
    for stage, reference in zip(odenets.stages(net).values(), odenets.stages(exact).values()):
        assert not reference.stats.converged.any() and not stage.stats.converged.any()
        assert stage.stats.residual.min() > 1e-3 and stage.stats.residual.dtype == torch.float32


@pytest.mark.parametrize("around", ["autocast", "bfloat16", "half"])
def test_the_judge_trusts_what_is_right(around):
    """Logits of the judge, under autocast or in half precision, against the float64 solve of the same weights."""
    net = odenets.ode_resnet_small(num_classes=4, in_channels=1, scheme="implicit(tol=1e-6)").eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if around != "autocast":
        net, x = getattr(net, around)(), getattr(x, around)()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
        logits, trusted = cold_judge(net)(x)
    exact = deepcopy(net).double()
    with torch.no_grad(), odenets.tightened(exact, 1e-10, 300):
        reference = exact(x.double())
    assert odenets.converged(exact).all() and trusted.all()
    unit = torch.finfo(logits.dtype).eps
    assert (logits.double() - reference).norm() < 4 * unit * reference.norm()


@pytest.mark.parametrize("name", ["explicit", "rk4", "ie_skip", "implicit"])
def test_states_under_autocast_are_float32(name):
    """A hundred increments of 1/1000 to a state of 1: in bfloat16 none of them would be kept."""
    stage = odenets.ODEStage([lambda t, y: torch.full_like(y, 0.1)], name, substeps=100)
    if name == "ie_skip":
        stage = odenets.ODEStage([lambda t, y: 0.1 + 0 * y], name, substeps=100)
    y = torch.ones(2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = stage(y)
    assert value.dtype == torch.float32 and (value > 1.05).all()


def test_float32_and_float64_pass_through_untouched():
    stage, y = odenets.ODEStage([Field()], "implicit"), _states()
    seen = []
    stage.fields[0].register_forward_hook(lambda module, args, out: seen.append((module.linear.weight is weight, out.dtype)))
    for cast in (torch.float32, torch.float64):
        stage.to(cast)
        weight = stage.fields[0].linear.weight
        assert stage(y.to(cast)).dtype == cast
        assert set(seen) == {(True, cast)}  # the very parameters, no copies
        seen.clear()


@pytest.mark.parametrize("name", ["implicit_euler", "ros2", "exponential_euler", "adaptive", "bdf2"])
def test_a_field_that_cannot_be_raised_is_refused(name):
    A = torch.eye(6, dtype=torch.bfloat16)
    closed = odenets.ODEStage([lambda t, y: y @ A], name)
    with pytest.raises(odenets.InputError, match="field 0 fails on torch.float32 states .* parameters or buffers"):
        closed(_states().bfloat16())
    rounding = odenets.ODEStage([lambda t, y: y.bfloat16()], name)
    with pytest.raises(odenets.InputError, match="field 0 returns torch.bfloat16 for torch.float32 states"):
        rounding(_states().bfloat16())


def test_an_error_of_the_field_itself_stays_what_it_is():
    def broken(t, y):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        odenets.ODEStage([broken], "implicit")(_states().bfloat16())


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", SOLVING)
def test_a_bare_step_in_half_precision_is_refused(name, dtype):
    with pytest.raises(odenets.InputError, match=f"{name}.* cannot solve in {dtype}.*float32 or float64"):
        odenets.get_scheme(name).step(lambda t, y: -y, 0.0, torch.ones(2, 3, dtype=dtype), 1.0)


@pytest.mark.parametrize("name", SOLVING)
def test_a_bare_step_under_autocast_solves_in_float32(name):
    field, y = Field(), _states()
    plain = _tight(name).step(field, 0.0, y, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_tight(name).step(field, 0.0, y, 0.5), plain)


def test_a_solver_refuses_half_precision():
    with pytest.raises(odenets.InputError, match="Broyden cannot solve in torch.bfloat16"):
        Broyden()(lambda z: z - 1, torch.zeros(2, 3, dtype=torch.bfloat16))


def _rounding():
    """What products of float32 may be rounded to, in all of torch's languages."""
    legacy = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    parts = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return legacy, [part.fp32_precision for part in parts]


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", SOLVING)
def test_a_solve_takes_no_part_in_what_products_may_be_rounded_to(name, allowed):
    seen, stage, before = [], _stage(name), _rounding()
    stage.fields[0].register_forward_hook(lambda *args: seen.append(torch.get_float32_matmul_precision()))
    value = stage(_states().requires_grad_())
    assert set(seen) == {"highest"} and stage.stats.converged.all()
    assert _rounding() == before
    value.sum().backward()
    assert _rounding() == before


@pytest.mark.parametrize("wanted", ["ieee", "tf32"])
def test_products_of_float32_are_as_they_were_after_an_error_too(wanted, allowed):
    before = _rounding()
    with pytest.raises(KeyError), float32_products(wanted), float32_products("ieee"), float32_products(wanted):
        legacy, parts = _rounding()
        assert legacy == (("highest", False, False) if wanted == "ieee" else ("high", True, True))
        assert set(parts) <= {wanted, "none"} and (wanted == "ieee" or parts[0] == wanted)
        raise KeyError
    assert _rounding() == before


@pytest.mark.parametrize("part", ["conv", "matmul"])
def test_a_solve_leaves_oneDNN_as_it_was_and_does_without(part):
    backend, seen, stage = getattr(torch.backends.mkldnn, part), [], _stage("implicit_euler")
    stage.fields[0].register_forward_hook(lambda *args: seen.append(backend.fp32_precision))
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        stage(_states())
        Broyden(tol=1e-6)(lambda z: (seen.append(backend.fp32_precision), z - 1)[1], _states())
        assert set(seen) <= {"ieee", "none"} and backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before


def test_threads_that_solve_side_by_side():
    torch.set_float32_matmul_precision("high")
    inside, left, seen = Event(), Event(), []

    def late():
        with unrounded(torch.ones(1)):
            inside.set()
            left.wait(10)
            seen.append(torch.get_float32_matmul_precision())

    try:
        with unrounded(torch.ones(1)):
            thread = Thread(target=late)
            thread.start()
            inside.wait(10)
        left.set()
        thread.join()
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
