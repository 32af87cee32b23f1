import copy
import inspect
import pickle
import warnings

import pytest
import torch
from torch import nn

import odenets
from odenets.schemes.scheme import GRADIENTS

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def _fields(count=3, channels=4, seed=0):
    torch.manual_seed(seed)
    return [odenets.fields.Block(odenets.fields.basic_layers, channels) for _ in range(count)]


def test_explicit_stage_is_a_plain_residual_loop(device, generator):
    stage = odenets.ODEStage(_fields(), "explicit").to(device)
    y = torch.randn(2, 4, 6, 6, generator=generator).to(device).requires_grad_()
    plain = y
    for block in stage.fields:
        plain = plain + block.layers(plain)
    assert torch.equal(stage(y), plain)
    mine, theirs = (torch.autograd.grad(out.square().sum(), [y, *stage.parameters()]) for out in (stage(y), plain))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs))


def test_time_runs_through_the_stage():
    seen = []

    def field(t, y):
        seen.append(float(t))
        return torch.zeros_like(y)

    odenets.ODEStage([field, field], "midpoint", interval=2.0, substeps=2)(torch.zeros(1, 1))
    assert seen == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_trajectory(name, device, generator):
    stage = odenets.ODEStage([lambda t, y: torch.sin(y)] * 2, name, substeps=3)
    y = torch.randn(4, 2, generator=generator).to(device)
    states = stage(y, trajectory=True)
    assert states.shape == (7, 4, 2) and torch.equal(states[0], y) and torch.equal(states[-1], stage(y))


def test_scheme_objects_are_taken_wherever_specs_are():
    scheme = odenets.get_scheme("rk4")
    assert odenets.ODEStage([torch.nn.Identity()], scheme).scheme is scheme and odenets.get_scheme(scheme) is scheme


def test_set_scheme_keeps_weights_and_state_dict():
    net = odenets.ode_resnet_small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    odenets.set_scheme(net, "implicit", substeps=2)
    after = net.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    assert all(str(stage.scheme) == "implicit_euler" and stage.substeps == 2 for stage in odenets.stages(net).values())
    odenets.set_scheme(net, "rk4")
    assert all(stage.substeps == 2 for stage in odenets.stages(net).values())


def test_statistics(device, generator):
    stage = odenets.ODEStage([lambda t, y: -(y**3)] * 2, "sdirk2", substeps=2)
    with pytest.raises(ValueError, match="no statistics yet"):
        _ = stage.stats
    y = torch.randn(5, 3, generator=generator).to(device).requires_grad_()
    stage(y).sum().backward()
    stats = stage.stats
    assert (
        stats.steps == 4
        and stats.solves == 8
        and stats.converged.shape == stats.residual.shape == stats.iterations.shape == (5,)
    )
    assert stats.converged.all() and stats.unconverged == 0 and (stats.residual <= 1e-3).all() and (stats.iterations >= 8).all()
    assert stats.backward_converged.all() and (stats.backward_iterations > 0).all() and stats.evaluations > 8
    odenets.set_scheme(stage, "explicit")
    stage(y)
    assert stage.stats.solves == 0 and stage.stats.converged.all() and not stage.stats.iterations.any()


def test_tolerance_is_relative_to_the_predictor(device, generator):
    """Per sample, ||y1 - y0 - h f(y1)|| <= tol ||h f(y0)||, computed afresh from the result."""
    field = lambda t, y: torch.tanh(2 * y)  # noqa: E731
    y = torch.randn(50, 8, generator=generator, dtype=torch.float64).to(device)
    for tol in (1e-2, 1e-5, 1e-9):
        stage = odenets.ODEStage([field], f"implicit(tol={tol},max_iterations=200)", substeps=4)
        first, second = stage(y, trajectory=True)[:2]
        residual = (second - first - 0.25 * field(0, second)).norm(dim=1) / (0.25 * field(0, first)).norm(dim=1)
        converged = stage.stats.solutions[0].converged
        assert (residual[converged] <= 1.001 * tol).all() and converged.double().mean() > 0.9


def test_tightened_restores_and_tightens():
    net = odenets.ode_resnet_small(scheme="implicit").eval()
    x = torch.rand(3, 1, 8, 8)
    with pytest.raises(KeyError), odenets.tightened(net, 1e-5):
        net(x)
        assert all((stage.stats.residual < 2e-5).all() for stage in odenets.stages(net).values())
        raise KeyError
    assert all(stage.scheme == odenets.get_scheme("implicit") for stage in odenets.stages(net).values())
    assert odenets.converged(net).shape == (3,)
    odenets.set_scheme(net, "explicit")
    assert odenets.converged(net).all(), "of the last forward pass, which was implicit"
    net(x)
    assert odenets.converged(net) is None


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_gradient_trains(gradient, device):
    torch.manual_seed(0)
    for scheme in ("explicit", "ie_skip", "implicit"):
        net = odenets.ode_resnet_small(scheme=scheme).to(device)
        odenets.set_gradient(net, gradient)
        net(torch.rand(2, 1, 8, 8, device=device)).square().sum().backward()
        assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("module", "scheme"), [(nn.BatchNorm2d(4), "implicit"), (nn.BatchNorm2d(4), "ie_skip"), (nn.Dropout(), "gauss4")]
)
def test_impure_fields_are_refused_in_training_mode(module, scheme):
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, t, y):
            return self.inner(y)

    stage = odenets.ODEStage([Field()], scheme)
    with pytest.raises(ValueError, match=f"{type(module).__name__} in training mode"):
        stage(torch.rand(2, 4, 3, 3))
    stage.eval()(torch.rand(2, 4, 3, 3))
    odenets.ODEStage([Field()], "explicit")(torch.rand(2, 4, 3, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: odenets.ODEStage([], "explicit"), "at least one field"),
        (lambda: odenets.ODEStage([nn.Identity()], "explicit", substeps=0), "substeps.*got 0"),
        (lambda: odenets.ODEStage([nn.Identity()], "explicit", substeps=1.5), "substeps.*got 1.5"),
        (lambda: odenets.ODEStage([nn.Identity()], "explicit", interval=-1), "interval.*got -1"),
        (lambda: odenets.ODEStage([lambda t, y: y[:, :1]], "explicit")(torch.rand(2, 3)), r"field 0.*\(2, 3\) to \(2, 1\)"),
        (lambda: odenets.ODEStage([lambda t, y: y[:, :1]], "implicit")(torch.rand(2, 3)), r"field 0.*\(2, 3\) to \(2, 1\)"),
        (lambda: odenets.ODEStage([lambda t, y: y * float("nan")], "implicit")(torch.rand(2, 3)), "NaN or Inf"),
        (lambda: odenets.set_scheme(nn.Linear(2, 2), "explicit"), "Linear has no ODEStage"),
        (lambda: odenets.set_gradient(odenets.ode_resnet_small(), "magic"), "magic.*exact, unrolled, detached"),
        (lambda: odenets.set_scheme(odenets.ode_resnet_small(), "magic"), "unknown scheme 'magic'.*explicit_euler"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_refused_setting_changes_nothing():
    stage = odenets.ODEStage([nn.Identity()], "rk4")
    with pytest.raises(ValueError):
        stage.configure(scheme="heun", substeps=0)
    assert str(stage.scheme) == "rk4" and stage.substeps == 1


# What compiles grows with fields, substeps and iterations alike: two of each show that none breaks the graph.
@pytest.mark.no_pretend
@pytest.mark.skipif(TORCH < (2, 14), reason="torch.compile of 2.11 rebuilds no named tuple, and traces through no beartype")
@pytest.mark.parametrize(
    ("spec", "substeps", "gradient"),
    [
        ("rk4", 2, "none"),
        ("rk4", 2, "unrolled"),
        ("implicit(fixed=true,max_iterations=3)", 1, "none"),
        ("implicit(fixed=true,max_iterations=3)", 1, "unrolled"),
        ("gauss4(fixed=true,max_iterations=2,solver=anderson)", 1, "none"),
        pytest.param("implicit(fixed=true,max_iterations=6)", 2, "unrolled", marks=pytest.mark.slow),
        pytest.param("gauss4(fixed=true,max_iterations=6,solver=anderson)", 2, "unrolled", marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(spec, substeps, gradient, device, generator):
    stage = odenets.ODEStage(_fields(2), spec, substeps=substeps).to(device).eval()
    odenets.set_gradient(stage, "unrolled")
    y = torch.randn(3, 4, 5, 5, generator=generator).to(device).requires_grad_(gradient == "unrolled")
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(gradient == "unrolled"):
        expected, value = stage(y), compiled(y)
        assert torch.allclose(value, expected, atol=1e-5)
        if gradient == "unrolled":
            one, other = (torch.autograd.grad(out.square().sum(), y)[0] for out in (expected, value))
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_fixed_iterations_report_and_agree(device, generator):
    y = torch.randn(20, 6, generator=generator, dtype=torch.float64).to(device)
    field = [lambda t, y: torch.tanh(2 * y)]
    fixed = odenets.ODEStage(field, "implicit(fixed=true,max_iterations=15,tol=1e-6)", substeps=4)
    free = odenets.ODEStage(field, "implicit(tol=1e-12,max_iterations=100)", substeps=4)
    assert torch.allclose(fixed(y), free(y), atol=1e-5) and fixed.stats.converged.all() and (fixed.stats.iterations == 60).all()
    short = odenets.ODEStage(field, "implicit(fixed=true,max_iterations=2,tol=1e-6)", substeps=4)
    short(y)
    assert not short.stats.converged.all() and (short.stats.residual > 1e-6).any()
    with pytest.raises(ValueError, match="fixed=true must not"):
        odenets.get_scheme("implicit(fixed=true,on_failure=raise)")


@pytest.mark.no_pretend
@pytest.mark.parametrize("name", [name for name in odenets.list_schemes() if odenets.get_scheme(name).implicit])
def test_a_batch_solved_in_pieces_is_the_same(name, device, generator, monkeypatch):
    f = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double().to(device)
    y = torch.randn(10, 6, generator=generator, dtype=torch.float64).to(device)
    u = torch.randn(10, 6, generator=generator, dtype=torch.float64).to(device)
    stage = odenets.ODEStage([lambda t, y: 1.5 * f(y)] * 2, f"{name}(tol=1e-11,max_iterations=100)")

    def everything():
        leaf = y.clone().requires_grad_()
        gradients = torch.autograd.grad(stage(leaf), [leaf, *f.parameters()], u)
        stats = stage.stats
        return (
            stage.stats.solves,
            [*gradients, torch.func.jvp(stage, (y,), (u,))[1], stage(y)],
            [stats.converged, stats.backward_converged, stats.iterations, stats.residual > 0],
        )

    solves, values, statistics = everything()
    for unknowns in (6, 20, 42):  # 1, 3 and 7 samples at a time: the last piece is smaller
        monkeypatch.setattr("odenets.schemes.solving.PIECE", {"cpu": unknowns, "cuda": unknowns})
        solves_in_pieces, in_pieces, statistics_in_pieces = everything()
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(values, in_pieces)) and solves == solves_in_pieces
        assert all(torch.equal(a, b) for a, b in zip(statistics, statistics_in_pieces))


def test_statistics_are_those_of_the_pass_that_ran(device):
    stage = odenets.ODEStage([lambda t, y: -y], "implicit", substeps=2)
    y = torch.rand(3, 2, device=device)
    stage(y)
    odenets.set_scheme(stage, "explicit", substeps=8)
    assert stage.stats.steps == 2 and stage.stats.solves == 2 and stage.stats.solving


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_copies_after_a_transform(name, device):
    stage = odenets.ODEStage([odenets.fields.Block(odenets.fields.basic_layers, 2)], name).double().to(device)
    y = torch.rand(1, 2, 3, 3, dtype=torch.float64, device=device)
    torch.func.vjp(stage, y)
    assert torch.allclose(copy.deepcopy(stage)(y), stage(y)) and torch.equal(pickle.loads(pickle.dumps(stage))(y), stage(y))


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_an_empty_batch_stays_empty(name, device):
    assert odenets.ODEStage([lambda t, y: torch.sin(y)], name)(torch.rand(0, 3, 2, device=device)).shape == (0, 3, 2)


def test_batch_norm_without_running_statistics_is_refused():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, t, y):
            return self.inner(y)

    with pytest.raises(ValueError, match="without running statistics"):
        odenets.ODEStage([Field()], "implicit").eval()(torch.rand(4, 3))


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_a_state_without_further_axes(name, device, generator):
    """(B,) is (B, 1), in value and gradient; and a field without the state has J = 0."""
    y = torch.randn(5, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    for field in (lambda t, y: torch.sin(y), lambda t, y: torch.ones(y.shape, dtype=y.dtype, device=y.device)):
        stage = odenets.ODEStage([field], name, substeps=2)
        for gradient in GRADIENTS:
            odenets.set_gradient(stage, gradient)
            flat, column = stage(y), stage(y[:, None])[:, 0]
            assert torch.allclose(flat, column, atol=1e-12)
            assert torch.allclose(*(torch.autograd.grad(value.sum(), y)[0] for value in (flat, column)), atol=1e-12)
    if name != "lm_resnet":  # whose step is h / (1 + k)
        assert torch.allclose(flat, y + 1)


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_tightened_on_every_scheme(name):
    scheme = odenets.get_scheme(name)
    tight = scheme.tightened(1e-12, 300)
    if "tol" in scheme.parameters:
        assert tight.tol <= 1e-12 and tight.max_iterations >= 300
    else:
        assert tight == scheme


def test_statistics_are_absent_to_python_before_a_pass(device):
    stage = odenets.ODEStage([lambda t, y: -y], "implicit")
    assert not hasattr(stage, "stats") and "fields" in dict(inspect.getmembers(stage))
    with pytest.raises(AttributeError, match="no statistics yet"):
        _ = stage.stats
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = stage.nothing_of_the_kind


@pytest.mark.parametrize("spec", ["rk4", "ie_skip(iterations=2,theta=0.5)", "implicit(fixed=true,max_iterations=4)"])
def test_export(spec, generator):
    stage = odenets.ODEStage(_fields(2), spec, substeps=2).eval()
    exported = torch.export.export(stage, (torch.randn(2, 4, 5, 5, generator=generator),)).module()
    y = torch.randn(2, 4, 5, 5, generator=generator)
    assert torch.allclose(exported(y), stage(y), atol=1e-6)


@pytest.mark.parametrize("name", ["implicit", "bdf2", "rosenbrock_euler", "exponential_euler", "adaptive"])
def test_what_cannot_be_exported_says_so(name):
    stage, y = odenets.ODEStage(_fields(1), name), torch.rand(1, 4, 3, 3)
    for record in (torch.export.export, torch.jit.trace):
        with pytest.raises(ValueError, match="looks at values to see when it is done"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record(stage, (y,))


def test_traces():
    stage, y = odenets.ODEStage(_fields(2), "rk4"), torch.rand(2, 4, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(torch.jit.trace(stage, y)(2 * y), stage(2 * y))
        odenets.set_scheme(stage, "ie_skip")
        with pytest.raises(ValueError, match="use torch.export"):
            torch.jit.trace(stage, y)


def test_a_tableau_of_ones_own():
    mine = odenets.Tableau("mine", A=[[0, 0], [1 / 4, 0]], b=[-1, 2], order=2, source="test")
    stage = odenets.ODEStage([lambda t, y: -y], mine)
    assert str(stage.scheme) == "mine" and torch.allclose(stage(torch.ones(1, 1)), torch.tensor(0.5))
