"""The audit catches each kind of network that only seems robust."""

import pytest
import torch
from audited import Backward, Wrapped, accuracy, sample, shipped, trained, untrained, verdicts

import odenets
import stability
from stability import Linf


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [
        ("ie_skip(gamma=0.1)", "explicit"),
        ("ie_skip(gamma=0.2)", "explicit"),
        ("ie_skip(gamma=0.1,iterations=5)", "explicit"),
        ("implicit_euler", "implicit"),
    ],
)
@pytest.mark.parametrize("random_weights", [False, True])
def test_a_detached_gradient_is_caught_twice(scheme, weights, random_weights):
    net = untrained(scheme) if random_weights else trained(scheme, weights)
    odenets.set_gradient(net, "detached")
    result, found = verdicts(net, sample(8), checks=["finite_differences", "exact_gradient"])
    assert found == {"finite_differences": False, "exact_gradient": False} and not result.passed
    figures = result.checks[1].figures
    assert figures["in_use_cosine"] == figures["detached_cosine"] < 0.999


def test_a_gradient_wrong_on_a_third_of_the_images_is_caught():
    honest, cheat = (trained("ie_skip(gamma=0.1)") for _ in range(2))
    odenets.set_gradient(cheat, "detached")
    darker = sample()[0].flatten(1).mean(1).quantile(1 / 3)
    net = torch.nn.ModuleList([honest, cheat])
    net.forward = lambda x: torch.where(x.flatten(1).mean(1, keepdim=True) > darker, honest(x), cheat(x))
    (check,) = verdicts(net, checks=["exact_gradient"])[0].checks
    assert not check.passed and check.figures["in_use_cosine"] > 0.999 and check.figures["in_use_share_wrong"] > 0.25


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.05])
def test_a_wrong_backward_pass_is_caught(factor):
    net = Wrapped(trained(), lambda x: Backward.apply(x, factor))
    result, found = verdicts(net, checks=["zero_gradients", "finite_differences", "large_epsilon"])
    assert found["finite_differences"] is False and found["zero_gradients"] is (factor != 0)
    assert found["large_epsilon"] is (factor > 0)
    if factor == 0:  # nothing moves, not even by chance
        right = float((net(sample()[0]).argmax(1) == sample()[1]).double().mean())
        assert result.checks[-1].figures["robust"] == right


def test_a_network_without_gradient_is_caught():
    result, found = verdicts(Wrapped(trained(), after=torch.Tensor.detach))
    assert not result.passed and found["zero_gradients"] is False and found["transfer"] is None


@pytest.mark.parametrize(
    "hide", [torch.Tensor.detach, lambda x: (x > 0.5).float(), lambda x: torch.from_numpy(x.detach().numpy())]
)
def test_a_network_cut_off_from_its_images_is_caught(hide):
    """Its logits still depend on parameters, so that they do require a gradient."""
    net = Wrapped(trained(), before=hide)
    result, found = verdicts(net)
    assert not result.passed and found["zero_gradients"] is False and found["finite_differences"] is False
    with pytest.raises(ValueError, match="nothing to attack along"):
        stability.pgd(net, *sample(), Linf(0.1))


def test_a_gradient_that_is_right_at_the_images_alone_is_caught():
    """Digits lie on a grid of sixteenths, and attacks leave it at once."""

    def before(x):
        on_the_grid = ((16 * x).frac() == 0).flatten(1).all(1).view(-1, 1, 1, 1)
        return torch.where(on_the_grid, x, Backward.apply(x, 0.0))

    assert verdicts(Wrapped(trained(), before), checks=["finite_differences"])[1] == {"finite_differences": False}


def test_gradients_that_lead_astray_are_caught_by_an_attack_without_any():
    """The backward pass is wrong in sign: gradient attacks walk away from what a search finds at once."""
    only = {"many_steps": 21, "checks": ["black_box"]}
    for net, passed in ((trained(), True), (Wrapped(trained(), lambda x: Backward.apply(x, -1.0)), False)):
        (check,) = verdicts(net, **only, queries=100)[0].checks
        assert check.passed is passed and (check.figures["found"] > 0.1) is not passed
    assert verdicts(Wrapped(trained(), lambda x: x.view(-1, 1, 8, 8)), [sample()[0].flatten(1), sample()[1]], **only)[1] == {
        "black_box": None
    }


def quantised(levels, straight_through):
    def quantise(x):
        rounded = (x * levels).round() / levels
        return x + (rounded - x).detach() if straight_through else rounded

    return quantise


@pytest.mark.parametrize(("straight_through", "caught_by"), [(False, "zero_gradients"), (True, "finite_differences")])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_quantising_layer_is_caught(place, straight_through, caught_by):
    net = Wrapped(trained(), **{place: quantised(16 if place == "before" else 4, straight_through)})
    assert accuracy(net) > 0.85
    result, found = verdicts(net, checks=["zero_gradients", "finite_differences", "large_epsilon"])
    assert found[caught_by] is False and not result.passed
    assert found["large_epsilon"] is straight_through


@pytest.mark.parametrize("size", [0.003, 0.05])
def test_randomised_noise_is_caught(size):
    net = Wrapped(trained(), lambda x: x + size * torch.randn_like(x))
    result, found = verdicts(net, checks=["deterministic", "finite_differences"])
    assert found == {"deterministic": False, "finite_differences": False} and "different logits" in result.checks[1].reason
    assert result.checks[0].figures["repeated_share"] > 0.5


def test_noise_that_repeats_itself_is_caught():
    """The same noise in each call, but each image gets another one at another place in the batch."""
    net = Wrapped(trained(), lambda x: x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    (check,) = verdicts(net, checks=["deterministic"])[0].checks
    assert not check.passed and check.figures["repeated_share"] == 0 and check.figures["other_batch_share"] > 0.5


@pytest.mark.parametrize("count", [2, 4, 7, 8, 15, 40])
@pytest.mark.parametrize("lean", [lambda y: y + y[:1], lambda y: y - y.mean(0)])
def test_images_that_lean_on_the_first_or_on_all_are_caught(lean, count):
    net, images = Wrapped(trained(), after=lean), sample(count)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        found = verdicts(net, images, checks=["deterministic"], generator=generator)[1]
        assert found == {"deterministic": False}
        generator = torch.Generator().manual_seed(seed)
        assert verdicts(trained(), images, checks=["deterministic"], generator=generator)[1] == {"deterministic": True}


def test_images_that_depend_on_their_neighbours_are_caught():
    torch.manual_seed(0)
    net = Wrapped(trained(), lambda x: torch.nn.functional.batch_norm(x, None, None, training=True))
    assert verdicts(net, checks=["deterministic"])[1] == {"deterministic": False}


@pytest.mark.parametrize(("factor", "vanished"), [(1e4, 0.7), (100.0, 0.5), (1e-25, 0.99)])
def test_a_saturated_softmax_and_an_extreme_temperature_are_caught(factor, vanished):
    net = Wrapped(trained(), after=lambda logits: factor * logits)
    assert accuracy(net) > 0.85
    result, found = verdicts(net, checks=["zero_gradients"])
    assert found["zero_gradients"] is False and result.checks[0].figures["cross_entropy"] > vanished
    assert result.checks[0].figures["margin"] == (1 if factor < 1 else 0)


def test_logits_that_hide_from_cross_entropy_alone_are_caught():
    """Too large for cross-entropy to see the right class, not large enough for its gradient to vanish."""
    net = Wrapped(trained(), after=lambda logits: 100 * logits)
    result, found = verdicts(net, many_steps=21, checks=["other_losses"])
    assert found["other_losses"] is False and result.checks[0].figures["found"] > 0.2
    assert verdicts(trained(), many_steps=21, checks=["other_losses"])[1] == {"other_losses": True}


def test_bounded_logits_that_hide_from_cross_entropy_are_caught():
    """Between -1 and 1 the softmax tells classes hardly apart, and saturates what it does tell."""
    net = shipped("bare")
    for candidate, passed in ((Wrapped(net, after=torch.tanh), False), (net, True)):
        (check,) = verdicts(candidate, sample(64), many_steps=21, checks=["other_losses"])[0].checks
        assert check.passed is passed and (check.figures["found"] > 0.1) is not passed


LOOSE = {
    "an adaptive scheme": ("adaptive(method=adaptive_heun,rtol=1,atol=1)", "explicit"),
    "a loose tolerance": ("implicit(tol=0.3)", "implicit"),
    "too few iterations": ("implicit(max_iterations=2)", "implicit"),
}


@pytest.mark.parametrize("name", LOOSE)
def test_a_net_whose_answer_moves_with_the_tolerance_is_caught(name):
    scheme, trained_with = LOOSE[name]
    net, adaptive = trained(scheme, trained_with), "adaptive" in scheme
    if adaptive:  # fields four times as fast: one step of Heun's method is accurate on those of the net itself
        with torch.no_grad():
            for stage in odenets.stages(net).values():
                for field in stage.fields:
                    field.layers[-1].weight.mul_(4)
    checks = ["tolerance"] if adaptive else ["exact_gradient", "solver", "tolerance"]
    found = verdicts(net, sample(8 if adaptive else 16), steps=2 if adaptive else 4, many_steps=5, checks=checks)[1]
    assert found["tolerance"] is False
    if not adaptive:
        assert found["exact_gradient"] is False and found["solver"] is (name == "a loose tolerance")


def test_unsolved_equations_are_caught():
    # z = y + z^2 + 1 has no real solution z where y > -3/4.
    stage = odenets.ODEStage(lambda t, y: y**2 + 1, "implicit_euler")
    net = torch.nn.Sequential(torch.nn.Flatten(), stage, torch.nn.Linear(64, 10))
    result, found = verdicts(net, steps=3, many_steps=4, checks=["deterministic", "solver"])
    assert found["solver"] is False and result.checks[1].figures["share_unconverged"] == 1
    # A gradient flow's equations have one root each and are solved within a few iterations, whatever the weights.
    net, (x, _) = untrained("implicit_euler", "gradient_flow"), sample(12)
    result, found = verdicts(net, (x, net(x).argmax(1)), steps=2, many_steps=4, checks=["solver"])
    assert found["solver"] is True, str(result)
    assert result.checks[0].figures["adversarial_residual_largest"] <= 1e-3
    assert verdicts(trained("rk4"), checks=["solver"])[1]["solver"] is None


def spike(x):
    """Class 1 only where the mean is within 1e-3 of 0.55: a coarse step leaps over it."""
    distance = (x.flatten(1).mean(1) - 0.55).abs()
    return torch.stack([torch.full_like(distance, 1e-3), distance.new_zeros(len(x)) + 2e-3 - distance], 1)


def test_an_attack_with_too_few_steps_is_caught():
    x = 0.45 + 0.1 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net, images = Wrapped(torch.nn.Identity(), after=spike), (x, torch.zeros(40, dtype=torch.int64))
    for many_steps, names in ((200, {"found_200"}), ((100, 1000), {"found_100", "found_1000"})):
        result, found = verdicts(net, images, many_steps=many_steps, checks=["more_steps"])
        figures = result.checks[0].figures
        assert found["more_steps"] is False and names <= set(figures)
        assert max(figures[name] for name in names) > 0.5 and min(figures.values()) < 0.2
    shares = [figures[f"robust_{steps}"] for steps in (20, 100, 1000)]
    assert shares[0] - shares[1] == pytest.approx(figures["found_100"])
    assert shares[1] - shares[2] == pytest.approx(figures["found_1000"])


def test_images_of_one_class_hide_no_masking():
    net, only = trained(), {"many_steps": 21, "checks": ["large_epsilon"]}
    images, labels = sample(390)
    chosen = (labels == 3) & (net(images).argmax(1) == 3)
    threes = [part[chosen][:24] for part in (images, labels)]
    constant = Wrapped(net, after=lambda logits: 0 * logits + torch.eye(10)[3])
    for candidate, passed in ((Wrapped(net, lambda x: Backward.apply(x, -1.0)), False), (net, True), (constant, None)):
        assert verdicts(candidate, threes, **only)[1] == {"large_epsilon": passed}


@pytest.mark.parametrize(
    ("scheme", "open_to"),
    [  # rk4 iterates nothing, and has a twin too
        ("ie_skip(gamma=0.01)", "explicit_euler"),
        ("rk4", "explicit_euler"),
        ("rk4", "midpoint"),
    ],
)
def test_transfer_from_another_scheme_is_caught(scheme, open_to):
    def before(x):
        """The gradient points the wrong way unless the stages run one scheme."""
        honest = all(str(stage.scheme) == open_to for stage in odenets.stages(net).values())
        return x if honest else Backward.apply(x, -1.0)

    net, settings = trained(scheme), {"steps": 6, "many_steps": 7, "checks": ["transfer"]}
    sources = ("heun", open_to)
    for candidate, passed in ((Wrapped(net, before), False), (net, True)):
        (check,) = verdicts(candidate, sample(24), **settings, sources=sources)[0].checks
        assert check.passed is passed and set(check.figures) == set(sources)
        assert passed or f"crafted on {open_to} break" in check.reason
    assert verdicts(Wrapped(net, before), sample(24), **settings, sources=("heun",))[1] == {"transfer": True}
    assert verdicts(net, **settings, sources=(scheme,))[1] == {"transfer": None}


def test_a_source_that_blows_up_is_named(monkeypatch):
    net, settings = trained("rk4"), {"steps": 2, "many_steps": 3, "checks": ["transfer"]}
    net.head.register_forward_hook(
        lambda module, inputs, logits: (
            logits * torch.nan if any(stage.scheme.name == "heun" for stage in odenets.stages(net).values()) else logits
        )
    )
    (check,) = verdicts(net, **settings, sources=("heun", "midpoint"))[0].checks
    assert check.passed and "nothing could be crafted on heun" in check.reason
    assert not stability.audit(net, *sample(), Linf(0.1), sources=("heun",), **settings).passed
