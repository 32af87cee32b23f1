"""Theory meets code: every scheme of the catalogue, one step at a time. New schemes are tested by being listed."""

import numpy as np
import pytest
import torch
from solved import tight

import odenets
from odenets.schemes.scheme import GRADIENTS

NAMES = odenets.list_schemes()
STEPPED = [name for name in NAMES if name != "adaptive"]
MULTISTEP = [name for name in STEPPED if odenets.get_scheme(name).previous]
ONE_STEP = [name for name in STEPPED if name not in MULTISTEP]


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_on_the_test_equation_is_R(name, device, generator):
    scheme = tight(name)
    z = torch.complex(torch.randn(40, generator=generator).double() * 2, torch.randn(40, generator=generator).double() * 2)
    expected = scheme.amplification(z.numpy())
    ones = torch.ones(1, 1, dtype=torch.complex128, device=device)
    for value, wanted in zip(z.tolist(), expected):
        got = scheme.step(lambda t, y, value=value: value * y, 0.0, ones, 1.0).item()
        assert abs(got - wanted) < 1e-11 * max(1, abs(wanted))


@pytest.mark.parametrize("name", ONE_STEP)
def test_step_size_enters_as_h_lambda(name, device):
    scheme = tight(name)
    y = torch.ones(1, 1, dtype=torch.complex128, device=device)
    got = scheme.step(lambda t, y: (-3 + 1j) * y, 0.0, y, 0.25).item()
    assert abs(got - scheme.amplification(np.array(0.25 * (-3 + 1j)))) < 1e-12


@pytest.mark.parametrize("name", [n for n in ONE_STEP if n != "ie_skip"])
def test_jacobian_of_a_step_on_a_linear_field_has_eigenvalues_R(name, device, generator):
    scheme = tight(name)
    M = 0.4 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(
        lambda y: scheme.step(lambda t, y: y @ M.to(y).mT, 0.0, y[None], 0.7)[0],
        torch.randn(6, generator=generator, dtype=torch.float64).to(device),
    )
    got = np.linalg.eigvals(J.cpu().numpy())
    wanted = scheme.amplification(0.7 * np.linalg.eigvals(M.numpy()))
    assert max(min(abs(g - w) for w in wanted) for g in got) < 1e-9


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_schemes_follow_their_recurrence(name, device, generator):
    """N steps on the test equation equal the scalar recurrence from the stated start; R is its companion's spectral radius."""
    scheme, h = tight(name), 0.3
    for value in torch.complex(*torch.randn(2, 12, generator=generator, dtype=torch.float64)).tolist():
        z = h * value
        a, b, c = scheme.characteristic(z)
        states = [1.0, 1 / (1 - z) if scheme.implicit else 1 + z]  # implicit or explicit Euler
        for _ in range(6):
            states.append(-(b * states[-1] + c * states[-2]) / a)
        stage = odenets.ODEStage([lambda t, y, value=value: value * y], scheme, interval=7 * h, substeps=7)
        got = stage(torch.ones(1, 1, dtype=torch.complex128, device=device), trajectory=True).flatten().cpu().numpy()
        assert np.abs(got - states).max() < 1e-10 * np.abs(states).max()
        companion = np.array([[-b / a, -c / a], [1, 0]])
        dominant = scheme.amplification(np.array(z))
        assert abs(abs(dominant) - np.abs(np.linalg.eigvals(companion)).max()) < 1e-12
        assert min(abs(np.linalg.eigvals(companion) - dominant)) < 1e-12


@pytest.mark.parametrize("name", MULTISTEP)
def test_history_runs_through_a_stage_and_ends_with_it(name, device):
    """Two fields with one step each are one walk of two steps; a second forward pass starts up again."""
    y = torch.rand(3, 2, dtype=torch.float64, device=device)
    field = lambda t, y: -y  # noqa: E731
    two_fields = odenets.ODEStage([field, field], tight(name))
    assert torch.equal(two_fields(y), odenets.ODEStage([field], tight(name), interval=2.0, substeps=2)(y))
    assert torch.equal(two_fields(y), two_fields(y)) and not two_fields.stats.startup_only
    short = odenets.ODEStage([field], tight(name))
    start = "implicit" if short.scheme.implicit else "explicit"
    assert torch.allclose(short(y), odenets.ODEStage([field], tight(start + "_euler"))(y)) and short.stats.startup_only
    assert "start-up" in repr(short) and "start-up" not in repr(two_fields)


def test_two_constructions_of_one_scheme(device, generator):
    W = (0.5 * torch.randn(4, 4, generator=generator, dtype=torch.float64)).to(device)
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(device)

    def run(spec, f):
        return odenets.ODEStage([f], spec, substeps=3)(y)

    curved, linear = (lambda t, y: torch.tanh(y @ W) * np.cos(float(t))), (lambda t, y: y @ W)
    settings = "tol=1e-13,max_iterations=200"
    pairs = [
        (f"theta(theta=0.5,{settings})", f"trapezoid({settings})", curved),
        (f"theta(theta=1,{settings})", tight("implicit_euler"), curved),
        ("rkc1(stages=1,damping=0)", "explicit", curved),
        (f"rosenbrock_euler({settings})", tight("implicit_euler"), linear),
        ("lm_resnet(k=0)", "explicit", curved),
    ]
    for one, other, f in pairs:
        assert torch.allclose(run(one, f), run(other, f), atol=1e-11), (one, other)
    exact = y @ torch.linalg.matrix_exp(W)
    assert torch.allclose(run(f"exponential_euler({settings})", linear), exact, atol=1e-11)


def test_exponential_euler_has_order_2_on_autonomous_problems(device):
    errors = []
    for steps in (16, 32):
        stage = odenets.ODEStage([lambda t, y: y**2], "exponential_euler(tol=1e-13)", interval=0.5, substeps=steps)
        errors.append(abs(stage(torch.ones(1, 1, dtype=torch.float64, device=device)).item() - 2))
    assert np.log2(errors[0] / errors[1]) > 1.8


def test_krylov_schemes_report_and_obey_their_tolerance(device, generator):
    W = torch.randn(30, 30, generator=generator, dtype=torch.float64).to(device) / 5
    y = torch.randn(4, 30, generator=generator, dtype=torch.float64).to(device)
    for name in ("rosenbrock_euler", "ros2", "exponential_euler"):
        reference = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], f"{name}(tol=1e-13,max_iterations=60)")(y)
        for tol in (1e-2, 1e-6):
            stage = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], f"{name}(tol={tol})")
            error = (stage(y) - reference).norm(dim=1) / (reference - y).norm(dim=1)
            assert stage.stats.converged.all() and (error < 30 * tol).all() and (stage.stats.residual <= tol).all()
        few = odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], f"{name}(tol=1e-9,max_iterations=2)")
        few(y)
        assert not few.stats.converged.any()
        with pytest.raises(RuntimeError, match="4 of 4 samples"):
            odenets.ODEStage([lambda t, y: torch.tanh(y @ W)], f"{name}(tol=1e-9,max_iterations=2,on_failure=raise)")(y)


def test_jacobian_of_ie_skip_on_a_linear_field(device, generator):
    """R(lambda) for normal M; for any M its matrix formula, whose eigenvalues are other ones."""
    scheme = odenets.get_scheme("ie_skip(gamma=0.07)")
    M = 0.5 * torch.randn(5, 5, generator=generator, dtype=torch.float64).to(device)
    identity = torch.eye(5, dtype=torch.float64, device=device)

    def step_matrix(M):
        return torch.autograd.functional.jacobian(
            lambda y: scheme.step(lambda t, y: y @ M.mT, 0.0, y[None], 1.0)[0], identity[0]
        )

    expected = identity + M + 2 * 0.07 * (identity - M).mT @ M @ M
    assert torch.allclose(step_matrix(M), expected, atol=1e-12)
    skew = M - M.mT
    got = np.sort_complex(np.linalg.eigvals(step_matrix(skew).cpu().numpy()))
    wanted = np.sort_complex(scheme.amplification(np.linalg.eigvals(skew.cpu().numpy())))
    assert np.abs(got - wanted).max() < 1e-12
    assert (
        np.abs(np.linalg.eigvals(expected.cpu().numpy())[:, None] - scheme.amplification(np.linalg.eigvals(M.cpu().numpy())))
        .min(0)
        .max()
        > 1e-3
    )


def _error(scheme, steps, device):
    """Largest error over the trajectory of y' = y^2 cos t, y(0) = -1, y = -1 / (1 + sin t): nonlinear and non-autonomous.

    Linear problems flatter the order, autonomous ones hide wrong nodes, and the error at one time may vanish by accident.
    """
    stage = odenets.ODEStage([lambda t, y: y**2 * np.cos(float(t))], scheme, interval=0.8, substeps=steps)
    y = stage(-torch.ones(1, 1, dtype=torch.float64, device=device), trajectory=True).flatten().cpu().numpy()
    return np.abs(y + 1 / (1 + np.sin(np.linspace(0, 0.8, steps + 1)))).max()


@pytest.mark.parametrize("name", [n for n in STEPPED if odenets.get_scheme(n).order])
def test_order_on_a_nonlinear_non_autonomous_problem(name, device):
    scheme = tight(name)
    steps = {1: (64, 128), 2: (32, 64), 3: (16, 32), 4: (8, 16)}.get(scheme.order, (4, 8))
    coarse, fine = (_error(scheme, n, device) for n in steps)
    assert fine > 1e-14, "rounding hides the slope: take fewer steps"
    assert np.log2(coarse / fine) > scheme.order - 0.2


def test_adaptive_reaches_its_tolerance(device):
    assert _error(odenets.get_scheme("adaptive(rtol=1e-8,atol=1e-10)"), 1, device) < 1e-7


def test_adaptive_reports_the_steps_of_each_sample(device):
    """A stiffer sample takes more steps, and does not change those of its neighbours; coupled, they share them."""
    y = torch.tensor([[0.1], [2.0]], dtype=torch.float64, device=device)
    stage = odenets.ODEStage([lambda t, y: -20 * y**3], "adaptive(rtol=1e-6,atol=1e-8)")
    stage(y)
    mild, stiff = stage.stats.accepted
    assert (mild.sample, stiff.sample) == (0, 1) and len(stiff.sizes) > 2 * len(mild.sizes) and sum(mild.sizes) >= 1
    stage(y[:1])
    assert stage.stats.accepted == (mild,) and stage.stats.solves == 0
    odenets.set_scheme(stage, "adaptive(rtol=1e-6,atol=1e-8,coupled=true)")
    stage(y)
    assert [entry.sample for entry in stage.stats.accepted] == [None]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_independent(name, device, generator):
    """Permuting, padding or cutting a batch leaves each sample's result unchanged (up to 3 tol where stopping adapts)."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    net.to(device)
    # One sample a thousand times larger than the others: a norm over the batch would show.
    y = (
        torch.randn(6, 5, generator=generator, dtype=torch.float64).to(device)
        * torch.tensor([1, 1, 1e3, 1e-2, 1, 1.0], device=device)[:, None]
    )
    stage = odenets.ODEStage([lambda t, y: net(y)] * 2, name, substeps=2)
    whole, order = stage(y), [3, 0, 5, 1, 4, 2]
    # Row by row: 3 tol of the row's own increment for each of its four steps, and what they amplify.
    tol = 3e-2 * torch.ones_like(whole[:, 0]) if stage.scheme.implicit else 1e-12 * whole.norm(dim=1)
    assert ((stage(y[order]) - whole[order]).norm(dim=1) <= tol[order]).all()
    assert ((torch.cat([stage(sample) for sample in y.split(1)]) - whole).norm(dim=1) <= tol).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_grad_and_inference_mode_give_the_same_value(name, gradient, device, generator):
    f = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).to(device)
    y = torch.randn(3, 4, generator=generator).to(device)
    stage = odenets.ODEStage([lambda t, y: f(y)], name)
    odenets.set_gradient(stage, gradient)
    expected = stage(y)
    assert expected.requires_grad
    with torch.no_grad():
        quiet = stage(y)
    with torch.inference_mode():
        inference = stage(y)
        fresh = stage(y.clone())
    assert not quiet.requires_grad
    assert not odenets.ODEStage([lambda t, y: torch.sin(y)], name)(y).requires_grad, "nothing here requires gradients"
    for other in (quiet, inference, fresh):
        assert torch.allclose(other, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_reverse_mode_through_the_step_are_adjoint(name, device, generator):
    f = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).double().to(device)
    y, u, v = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64).to(device)
    stage = odenets.ODEStage([lambda t, y: f(y)] * 2, tight(name))
    value, Ju = torch.func.jvp(stage, (y,), (u,))
    _, pullback = torch.func.vjp(stage, y)
    assert torch.allclose(value, stage(y))
    assert abs((Ju * v).sum() - (u * pullback(v)[0]).sum()) < 1e-9
    leaf = y.clone().requires_grad_()
    (plain,) = torch.autograd.grad(stage(leaf), leaf, v)
    assert torch.allclose(plain, pullback(v)[0], atol=1e-10)
    difference = (stage(y + 1e-5 * u) - stage(y - 1e-5 * u)) / 2e-5
    assert torch.allclose(difference, Ju, atol=1e-7)


@pytest.mark.no_pretend
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_weights_agree_with_finite_differences(name, device, generator):
    scheme = tight(name)
    weight = (0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)).to(device).requires_grad_()
    y = torch.randn(2, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()

    def run(weight, y):
        return odenets.ODEStage([lambda t, y: torch.tanh(y @ weight)], scheme)(y)

    assert torch.autograd.gradcheck(run, (weight, y), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("recording", [True, False])
def test_forward_mode_without_transforms(recording, device):
    """Dual numbers of torch.autograd.forward_ad, beside torch.func."""
    y, u = torch.randn(2, 3, 4, dtype=torch.float64, device=device)
    for name in ("rk4", "ie_skip", "implicit_euler(tol=1e-12)", "adaptive"):
        stage = odenets.ODEStage([lambda t, y: torch.tanh(y)], name)
        with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(recording):
            tangent = torch.autograd.forward_ad.unpack_dual(stage(torch.autograd.forward_ad.make_dual(y, u))).tangent
        assert torch.allclose(tangent, torch.func.jvp(stage, (y,), (u,))[1])


def test_detached_ie_skip_has_the_backward_of_the_explicit_predictor(device, generator):
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    stage = odenets.ODEStage([lambda t, y: torch.tanh(2 * y)], "ie_skip(gamma=0.2,iterations=3)")
    exact_value = stage(y)
    (exact,) = torch.autograd.grad(exact_value.sum(), y)
    odenets.set_gradient(stage, "detached")
    value = stage(y)
    (detached,) = torch.autograd.grad(value.sum(), y)
    odenets.set_scheme(stage, "explicit")
    (explicit,) = torch.autograd.grad(stage(y).sum(), y)
    assert torch.allclose(value, exact_value) and torch.allclose(detached, explicit)
    assert (exact - detached).norm() > 0.1 * exact.norm()


def test_ie_skip_tends_to_implicit_euler(device, generator):
    """Two constructions of one scheme: many descent steps reach the root that Broyden finds, where gamma < 1/||I - hJ||^2."""
    y = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(device)
    field = [lambda t, y: -torch.tanh(y)]
    skip = odenets.ODEStage(field, "ie_skip(gamma=0.1,iterations=400)")(y)
    assert torch.allclose(skip, odenets.ODEStage(field, tight("implicit"))(y), atol=1e-10)


# b of the stable real interval (-b, 0) is tested with the regions; here the values R(i) of the same source.
@pytest.mark.parametrize(
    ("spec", "modulus"),
    [("explicit", 1.414), ("ie_skip(gamma=0.05)", 1.273), ("ie_skip", 1.131), ("ie_skip(gamma=0.25)", 0.707)],
)
def test_growth_on_the_imaginary_axis(spec, modulus):
    assert abs(abs(odenets.get_scheme(spec).amplification(np.array(1j))) - modulus) < 5e-4
