"""How the audit goes about its work: what it leaves alone, what it refuses, what its parts compute."""

import copy
from types import SimpleNamespace

import pytest
import torch
from audited import THREAT, Backward, Wrapped, sample, trained, untrained, verdicts, widened

import odenets
import stability
from stability.masking import gradient_checks, subject
from stability.masking.audit import CHECKS
from stability.masking.subject import allowed, cold_judge, configured, refined


def test_an_explicit_network_and_what_does_not_apply_to_it():
    result, found = verdicts(trained(), sample(16), many_steps=21, queries=20)
    assert result.passed
    assert {name for name, passed in found.items() if passed is None} == {
        "exact_gradient",
        "solver",
        "connected_root",
        "tolerance",
    }
    assert len(str(result).splitlines()) == len(CHECKS) and all(check.reason for check in result.checks)


def test_every_check_on_an_accelerator(device):
    net = untrained("implicit_euler(tol=0.01)", "gradient_flow").to(device)
    x, y = (part.to(device) for part in sample(8))
    result = stability.audit(net, x, y, THREAT, many_steps=21, queries=20)
    assert {check.name for check in result.checks} == set(CHECKS)
    assert all(check.passed is not None for check in result.checks if check.name in ("tolerance", "solver", "exact_gradient"))


def test_finite_differences_in_float32_where_no_copy_can_be_had(monkeypatch):
    monkeypatch.setattr(gradient_checks, "_in_double", lambda net, x: (net, x))
    only = {"checks": ["finite_differences"]}
    assert verdicts(trained(), **only)[0].passed
    assert not verdicts(Wrapped(trained(), lambda x: Backward.apply(x, 0.5)), **only)[0].passed


def test_the_judge_solves_anew_to_its_own_tolerance():
    # Gradient flows have mu_2 <= 0: whatever the weights, an equation of implicit Euler has one root, and that is the answer.
    net, (x, _) = untrained("implicit_euler(tol=0.3)", "gradient_flow"), sample()
    accurate = copy.deepcopy(net).double()
    with torch.no_grad():
        logits, trusted = cold_judge(net)(x)
        with odenets.tightened(accurate, 1e-10):
            root = accurate(x.double())
        loose = net(x)
    assert trusted.all() and odenets.converged(accurate).all()
    assert (logits - root).abs().max() < 1e-4 and (loose - root).abs().max() > 3e-3, "relative to logits of about 1"
    assert cold_judge(trained())(x)[1] is None


def test_the_widened_net_is_the_same_function():
    wide = odenets.ode_resnet_small()
    wide.load_state_dict(widened(trained().state_dict()))
    torch.testing.assert_close(wide.eval()(sample()[0]), trained()(sample()[0]), rtol=1e-4, atol=1e-4)


def test_refined_reaches_solves_and_adaptive_steps_and_ends():
    with refined(net := trained("adaptive(method=bosh3,rtol=0.1,atol=1e-7)"), 1e-5):
        assert str(next(iter(odenets.stages(net).values())).scheme) == "adaptive(rtol=1e-05,atol=1e-07)"
    with refined(other := trained("implicit(tol=0.1,max_iterations=3)"), 1e-5):
        scheme = next(iter(odenets.stages(other).values())).scheme
        assert scheme.tol == 1e-5 and scheme.max_iterations == 200
    assert [str(next(iter(odenets.stages(n).values())).scheme) for n in (net, other)] == [
        "adaptive(method=bosh3,rtol=0.1,atol=1e-07)",
        "implicit_euler(tol=0.1,max_iterations=3)",
    ]


def test_everything_is_left_as_it_was():
    net = trained("ie_skip(gamma=0.05)").train()
    odenets.set_gradient(net, "unrolled")
    net.stem.eval()
    net.head[4].weight.requires_grad_(False)

    def state():
        stages = [(str(stage.scheme), stage.gradient, stage.substeps) for stage in odenets.stages(net).values()]
        parameters = [(p.requires_grad, p.grad) for p in net.parameters()]
        return stages, [module.training for module in net.modules()], parameters

    before, parameters = state(), [p.clone() for p in net.parameters()]
    with torch.inference_mode():
        stability.audit(net, *sample(), THREAT, steps=2, many_steps=3)
    assert state() == before and all(map(torch.equal, parameters, net.parameters()))
    for fatal, checks in ((0, None), (4, ["exact_gradient"])):
        calls = iter([False] * fatal + [True])
        handle = net.head.register_forward_hook(lambda *_, calls=calls: 1 / 0 if next(calls) else None)
        with pytest.raises(ZeroDivisionError):
            stability.audit(net, *sample(), THREAT, checks=checks)
        handle.remove()
    assert state() == before


def test_the_same_seed_gives_the_same_figures():
    first, second = (stability.audit(trained(), *sample(), THREAT, steps=3, many_steps=5, queries=30) for _ in range(2))
    assert first == second


def test_thresholds_respect_small_samples():
    assert allowed(0.02, 10) == 1 and allowed(0.02, 32) == 2 and allowed(0.02, 1000) == 28


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: stability.audit(lambda x: x, x, y, THREAT), "Module"),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x + 1, y, THREAT), "lie in"),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x, y + 100, THREAT), "labels"),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, checks=["transfers"]), "unknown check"),
        (
            lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, many_steps=20),
            "ascend from steps on, got .20,. after 20",
        ),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, many_steps=(100, 50)), "ascend"),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, many_steps=()), "ascend"),
        (lambda x, y: stability.audit(torch.nn.Flatten(), x, y, THREAT, sources=("magic",)), "unknown scheme 'magic'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*sample())


def test_gradients_are_looked_at_on_few_images_until_one_offends():
    checks, seen = ["finite_differences", "exact_gradient"], {}
    honest, cheat = (trained("ie_skip(gamma=0.1)") for _ in range(2))
    odenets.set_gradient(cheat, "detached")
    x, y = sample(40)
    net = torch.nn.ModuleList([honest, cheat])
    for odd in ((), (3,), (35,)):  # images on which the gradient is wrong
        those = x[list(odd)]
        net.forward = lambda x, those=those: torch.where(
            (x[:, None] == those).flatten(2).all(2).any(1, keepdim=True), cheat(x), honest(x)
        )
        (check,) = verdicts(net, (x, y), checks=checks[1:])[0].checks
        seen[odd] = check.reason.split(" images")[0].split()[-1], check.passed
    assert seen == {(): ("32", True), (3,): ("40", True), (35,): ("32", True)}, "one image in forty proves nothing"
    (check,) = verdicts(honest, (x, y), checks=checks[:1])[0].checks
    assert check.passed and check.figures["images"] == 32
    (check,) = verdicts(cheat, (x, y), checks=checks[:1])[0].checks
    assert not check.passed and check.figures["images"] == 40


@pytest.mark.parametrize(("tol", "attacks"), [("1e-3", 3), ("1e-2", 4)])
def test_an_attack_on_the_same_function_is_not_run_again(tol, attacks, monkeypatch):
    """The few steps that the judge sees first are those that the net's own tolerance is compared by, where that is as tight."""
    ran, pgd = [], subject.pgd
    monkeypatch.setattr(
        subject, "pgd", lambda *arguments, **settings: ran.append(settings["steps"]) or pgd(*arguments, **settings)
    )
    net, images = trained(f"implicit(tol={tol})", "implicit"), sample(10)
    (check,) = verdicts(net, images, steps=2, many_steps=3, checks=["tolerance"])[0].checks
    assert ran == [2, 3, 2] + [2] * (attacks - 3) and check.passed and 0 < check.figures["robust_own"] < 1
    assert check.figures["robust_moved"] < 0.2


def test_the_luck_of_a_start_is_no_lack_of_steps(monkeypatch):
    """Between 2 % and 5 % a longer attack may find what another start of the short one finds too."""
    broken, asked = torch.full((64,), -1), []
    monkeypatch.setattr(subject.Case, "white_box", property(lambda self: SimpleNamespace(broken_by=broken)))
    monkeypatch.setattr(subject.Case, "lucky", lambda self, rows: asked.append(int(rows.sum())) or 2)
    for found, passed, doubtful in ((3, True, False), (5, True, True), (6, False, True), (7, False, False)):
        broken[:] = -1
        broken[:found] = 1
        asked.clear()
        (check,) = verdicts(trained(), sample(64), checks=["more_steps"])[0].checks
        assert check.passed is passed and asked == [found] * doubtful and check.figures["found_200"] == found / 64
        assert ("another start finds" in check.reason) is doubtful


@pytest.mark.parametrize("hides", [True, False])
def test_the_luck_of_a_start_is_no_fault_of_the_tolerance(hides, monkeypatch):
    """PGD at another tolerance ends elsewhere on images at the edge; those that a second start breaks prove nothing."""
    net, (x, _), broken = trained("implicit"), sample(64), torch.full((64,), -1)
    images = x, net(x).argmax(1)
    monkeypatch.setattr(subject.Case, "white_box", property(lambda self: SimpleNamespace(broken_by=broken, x_adv=self.x)))
    monkeypatch.setattr(subject.Case, "lucky", lambda self, rows: min(2, int(rows.sum())))

    def left(self):
        if len(self.x) < 64:  # another start
            return torch.arange(len(self.x)) >= 2
        standing = torch.ones(64, dtype=torch.bool)
        standing[: 0 if hides else found] = False
        return standing

    monkeypatch.setattr(subject.Case, "left_by_own", left)
    for found, passed, doubtful in ((3, True, False), (5, True, True), (6, False, True), (7, False, False)):
        broken[:] = -1
        broken[: found if hides else 0] = 0
        (check,) = verdicts(net, images, checks=["tolerance"])[0].checks
        assert check.passed is passed and check.figures["robust_moved"] == (found - 2 * doubtful) / 64
        assert ("another start breaks 2" in check.reason) is doubtful


def test_another_start_breaks_what_lies_at_the_edge_alone():
    """One image whose ball is nearly all wrong, and one that is never reached."""
    x = torch.tensor([0.5, 0.9]).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([[0.0], [-1.0]])
        net[1].bias[:] = torch.tensor([0.0, 31.5])  # class 1 below a mean of 0.49
    case = subject.Case(net, x, torch.zeros(2, dtype=torch.int64), THREAT, 5, (6,), 10, (), 0, 512)
    case.__dict__["white_box"] = SimpleNamespace(broken_by=torch.tensor([1, 1]))
    assert case.lucky(torch.tensor([True, True])) == 1


def test_configured_settings_end_with_an_error():
    net = trained("rk4")
    with pytest.raises(ZeroDivisionError), configured(net, scheme="heun"):
        raise ZeroDivisionError
    assert all(stage.scheme.name == "rk4" for stage in odenets.stages(net).values())


def test_a_gradient_of_nan_is_no_exact_one(monkeypatch):
    exact, net = gradient_checks._gradient, trained("ie_skip(gamma=0.05)")
    settings = next(iter(odenets.stages(net).values()))
    odenets.set_gradient(net, "unrolled")  # that of ie_skip is the exact one

    def broken(*arguments):
        gradient = exact(*arguments)
        if settings.gradient == "unrolled":
            gradient[::2] = torch.nan
        return gradient

    for gradient, passed in ((exact, True), (broken, False)):
        monkeypatch.setattr(gradient_checks, "_gradient", gradient)
        (check,) = verdicts(net, sample(16), checks=["exact_gradient"])[0].checks
        assert check.passed is passed, str(check)
