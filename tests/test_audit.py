"""Every check of the audit fails on a network made to cheat it, and an honest network passes them all."""
import pytest
import torch
from sklearn.datasets import load_digits

import odenets
import stability
from stability import Linf, gradient_checks
from stability.audit import CHECKS
from stability.case import allowed, cold_judge

THREAT = Linf(0.1)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@pytest.fixture(scope="module")
def weights(digits):
    """A small explicit network after a few epochs, about 95 % right."""
    torch.manual_seed(0)
    net, (x, y) = odenets.ode_resnet_small(), digits
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(3):
        for rows in torch.randperm(1400).split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return net.state_dict()


@pytest.fixture
def sample(digits):
    return digits[0][1400:1440], digits[1][1400:1440]


def trained(weights, scheme="explicit"):
    net = odenets.ode_resnet_small(scheme=scheme)
    net.load_state_dict(weights)
    return net


def verdicts(net, sample, **settings):
    result = stability.audit(net, *sample, THREAT, **settings)
    return result, {check.name: check.passed for check in result.checks}


class Wrapped(torch.nn.Module):
    """A network behind a function of its images, one of its logits, or both."""

    def __init__(self, net, before=None, after=None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        logits = self.net(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


class Backward(torch.autograd.Function):
    """The identity with a backward pass that multiplies by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None


def test_an_honest_network_passes_everything(weights, sample):
    result, found = verdicts(trained(weights), sample, many_steps=60)
    assert result.passed
    assert found == {"zero_gradients": True, "finite_differences": True, "exact_gradient": None, "solver": None,
                     "more_steps": True, "large_epsilon": True, "transfer": None}
    assert len(str(result).splitlines()) == len(CHECKS) and all(check.reason for check in result.checks)


@pytest.mark.parametrize("scheme", ["ie_skip(gamma=0.1)", "implicit_euler(tol=1e-2)", "rk4"])
def test_exact_gradients_pass(weights, sample, scheme):
    result, found = verdicts(trained(weights, scheme), sample, checks=["finite_differences", "exact_gradient"])
    assert result.passed and found["finite_differences"] is True, str(result)


@pytest.mark.parametrize("scheme", [
    "ie_skip(gamma=0.1)", "ie_skip(gamma=0.2)", "ie_skip(gamma=0.1,iterations=5)", "implicit_euler"])
@pytest.mark.parametrize("random_weights", [False, True])
def test_a_detached_gradient_is_caught_twice(weights, sample, scheme, random_weights):
    torch.manual_seed(0)
    net = odenets.ode_resnet_small(scheme=scheme) if random_weights else trained(weights, scheme)
    odenets.set_gradient(net, "detached")
    result, found = verdicts(net, sample, checks=["finite_differences", "exact_gradient"])
    assert found == {"finite_differences": False, "exact_gradient": False} and not result.passed
    figures = result.checks[1].figures
    assert figures["in_use_cosine"] == figures["detached_cosine"] < 0.999


def test_a_gradient_wrong_on_a_third_of_the_images_is_caught(weights, sample):
    honest, cheat = (trained(weights, "ie_skip(gamma=0.1)") for _ in range(2))
    odenets.set_gradient(cheat, "detached")
    darker = sample[0].flatten(1).mean(1).quantile(1 / 3)
    net = torch.nn.ModuleList([honest, cheat])
    net.forward = lambda x: torch.where(x.flatten(1).mean(1, keepdim=True) > darker, honest(x), cheat(x))
    (check,) = verdicts(net, sample, checks=["exact_gradient"])[0].checks
    assert not check.passed and check.figures["in_use_cosine"] > 0.999 and check.figures["in_use_share_wrong"] > 0.25


def test_images_of_one_class_hide_no_masking(weights, digits):
    net, only = trained(weights).eval(), {"many_steps": 21, "checks": ["large_epsilon"]}
    chosen = (digits[1] == 3) & (net(digits[0]).argmax(1) == 3)
    sample = [part[chosen][:24] for part in digits]
    constant = Wrapped(net, after=lambda logits: 0 * logits + torch.eye(10)[3])
    for candidate, passed in ((Wrapped(net, lambda x: Backward.apply(x, -1.0)), False), (net, True), (constant, None)):
        assert verdicts(candidate, sample, **only)[1] == {"large_epsilon": passed}


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.05])
def test_a_wrong_backward_pass_is_caught(weights, sample, factor):
    net = Wrapped(trained(weights), lambda x: Backward.apply(x, factor))
    result, found = verdicts(net, sample, many_steps=30)
    assert found["finite_differences"] is False and found["zero_gradients"] is (factor != 0)
    assert found["large_epsilon"] is (factor > 0)
    if factor == 0:  # nothing moves, not even by chance
        accuracy = float((net.eval()(sample[0]).argmax(1) == sample[1]).double().mean())
        assert result.checks[list(CHECKS).index("large_epsilon")].figures["robust"] == accuracy


def test_finite_differences_in_float32_where_no_copy_can_be_had(weights, sample, monkeypatch):
    monkeypatch.setattr(gradient_checks, "_in_double", lambda net, x: (net, x))
    only = {"checks": ["finite_differences"]}
    assert verdicts(trained(weights), sample, **only)[0].passed
    assert not verdicts(Wrapped(trained(weights), lambda x: Backward.apply(x, 0.5)), sample, **only)[0].passed


def test_a_network_that_clamps_its_images_is_honest(weights, sample):
    # Many pixels are exactly 0: half of a central difference there would fall on the flat side of the clamp.
    net = Wrapped(trained(weights), lambda x: x.clamp(0, 1))
    assert verdicts(net, sample, checks=["finite_differences"])[0].passed


def test_the_judge_solves_anew_to_its_own_tolerance(weights, sample):
    net = trained(weights, "implicit_euler(tol=0.3)")
    with torch.no_grad():
        logits, trusted = cold_judge(net)(sample[0])
        with odenets.tightened(net, 1e-7):
            accurate = net(sample[0])
        loose = net(sample[0])
    assert trusted.all() and (logits - accurate).abs().max() < 1e-3 < (loose - accurate).abs().max()
    assert cold_judge(trained(weights))(sample[0])[1] is None


def test_a_random_forward_pass_is_caught(weights, sample):
    net = Wrapped(trained(weights), lambda x: x + 0.01 * torch.randn_like(x))
    result, _ = verdicts(net, sample, checks=["finite_differences"])
    assert not result.passed and "different logits" in result.checks[0].reason


def test_saturated_logits_are_caught(weights, sample):
    net = Wrapped(trained(weights), after=lambda logits: 1e4 * logits)
    result, found = verdicts(net, sample, checks=["zero_gradients"])
    assert found["zero_gradients"] is False and result.checks[0].figures["margin"] == 0


def test_a_network_without_gradient_is_caught(weights, sample):
    result, found = verdicts(Wrapped(trained(weights), after=torch.Tensor.detach), sample)
    assert not result.passed and found["zero_gradients"] is False and found["transfer"] is None


def spike(x):
    """Class 1 only where the mean is within 1e-3 of 0.55: a coarse step leaps over it."""
    distance = (x.flatten(1).mean(1) - 0.55).abs()
    return torch.stack([torch.full_like(distance, 1e-3), distance.new_zeros(len(x)) + 2e-3 - distance], 1)


def test_an_attack_with_too_few_steps_is_caught():
    x = 0.45 + 0.1 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = Wrapped(torch.nn.Identity(), after=spike)
    result, found = verdicts(net, (x, torch.zeros(40, dtype=torch.int64)), checks=["more_steps"])
    assert found["more_steps"] is False
    assert result.checks[0].figures["found"] > 0.5 and result.checks[0].figures["robust_200"] < 0.2


@pytest.mark.parametrize("scheme", ["ie_skip(gamma=0.01)", "rk4"])  # rk4 iterates nothing, and has a twin too
def test_transfer_from_the_explicit_twin_is_caught(weights, sample, scheme):
    def before(x):
        """The gradient points the wrong way unless the stages are explicit."""
        explicit = all(str(stage.scheme) == "explicit_euler" for stage in odenets.stages(net).values())
        return x if explicit else Backward.apply(x, -1.0)

    net, settings = trained(weights, scheme), {"steps": 10, "many_steps": 11, "checks": ["transfer"]}
    assert [verdicts(n, sample, **settings)[1]["transfer"] for n in (Wrapped(net, before), net)] == [False, True]


def test_unsolved_equations_are_caught(weights, sample):
    # z = y + z^2 + 1 has no real solution z where y > -3/4.
    stage = odenets.ODEStage(lambda t, y: y**2 + 1, "implicit_euler")
    net = torch.nn.Sequential(torch.nn.Flatten(), stage, torch.nn.Linear(64, 10))
    result, found = verdicts(net, sample, steps=3, many_steps=4, checks=["solver"])
    assert found["solver"] is False and result.checks[0].figures["share_unconverged"] == 1
    result, found = verdicts(trained(weights, "implicit_euler"), sample, steps=3, many_steps=4, checks=["solver"])
    assert found["solver"] is True, str(result)
    assert verdicts(trained(weights, "rk4"), sample, checks=["solver"])[1]["solver"] is None


def test_everything_is_left_as_it_was(weights, sample):
    net = trained(weights, "ie_skip(gamma=0.05)").train()
    odenets.set_gradient(net, "unrolled")
    net.stem.eval()
    net.head[4].weight.requires_grad_(False)

    def state():
        stages = [(str(stage.scheme), stage.gradient, stage.substeps) for stage in odenets.stages(net).values()]
        parameters = [(p.requires_grad, p.grad) for p in net.parameters()]
        return stages, [module.training for module in net.modules()], parameters

    before, parameters = state(), [p.clone() for p in net.parameters()]
    with torch.inference_mode():
        stability.audit(net, *sample, THREAT, steps=2, many_steps=3)
    assert state() == before and all(map(torch.equal, parameters, net.parameters()))
    for fatal, checks in ((0, None), (4, ["exact_gradient"])):
        calls = iter([False] * fatal + [True])
        handle = net.head.register_forward_hook(lambda *_, calls=calls: 1 / 0 if next(calls) else None)
        with pytest.raises(ZeroDivisionError):
            stability.audit(net, *sample, THREAT, checks=checks)
        handle.remove()
    assert state() == before


def test_the_same_seed_gives_the_same_figures(weights, sample):
    first, second = (stability.audit(trained(weights), *sample, THREAT, steps=3, many_steps=5) for _ in range(2))
    assert first == second


def test_thresholds_respect_small_samples():
    assert allowed(0.02, 10) == 1 and allowed(0.02, 32) == 2 and allowed(0.02, 1000) == 28


@pytest.mark.parametrize("call, message", [
    (lambda x, y: stability.audit(lambda x: x, x, y, THREAT), "Module"),
    (lambda x, y: stability.audit(torch.nn.Flatten(), x + 1, y, THREAT), "lie in"),
    (lambda x, y: stability.audit(torch.nn.Flatten(), x, y + 100, THREAT), "labels"),
    (lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, checks=["transfers"]), "unknown check")])
def test_bad_input(sample, call, message):
    with pytest.raises(ValueError, match=message):
        call(*sample)
