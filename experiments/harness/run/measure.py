"""Measuring one trained network: judged accuracies, the dynamics of its blocks, its solver, its audit."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import odenets
import stability
from experiments.harness.run.schema import (
    CHEAP,
    FULL,
    WHOLE,
    AuditResult,
    CheckResult,
    Measurement,
    Metric,
    Refinement,
    SolverStatistics,
)
from experiments.harness.training.data import Split
from stability.masking.subject import configured
from stability.types import Progress

DENSE_LIMIT, DENSE_IMAGES = 512, 4  # states so small have all eigenvalues computed, for so many images
EXPONENT_IMAGES, EXPONENT_TOL = 2, 1e-2
# A net at finer and finer steps, solved to `LADDER_TOL`, against the flow of its fields: fourth order at `EXACT_STEPS`.
LADDER, LADDER_TOL, EXACT, EXACT_STEPS = (1, 2, 4, 8, 16, 32), 1e-10, "rk4", 128
# What an audit tells in seconds: short attacks do to look at adversarial images.
CHEAP_CHECKS = ("deterministic", "zero_gradients", "exact_gradient", "solver", "connected_root", "tolerance", "moved")


def gradients(scheme: odenets.Scheme) -> tuple[str, ...]:
    """The gradients that a scheme can be attacked with and that differ: the exact one first."""
    return tuple(gradient for gradient in scheme.gradients if gradient != "unrolled")


def attack_plan(net: nn.Module, attacks: Iterable[str], epsilons: Iterable[float]) -> list[tuple[str, float, str]]:
    """What `measure_attack` has to be asked for: (attack, epsilon, gradient), first clean images."""
    ways = next((gradients(stage.scheme) for stage in odenets.stages(net).values()), ("exact",))
    attacked = [
        (name, epsilon, gradient)
        for name in attacks
        for epsilon in epsilons
        for gradient in (ways if stability.get_attack(name).follows_gradient else ways[:1])
    ]
    return [("clean", 0.0, "exact"), *attacked]


def measure_accuracy(
    net: nn.Module,
    test: Split,
    attacks: Iterable[str],
    epsilons: Iterable[float],
    seed: int,
    progress: Progress = lambda done, total: None,
    threat: Any = stability.Linf,
) -> tuple[Measurement, ...]:
    """Clean and adversarial accuracy on all of `test`, every image counted by the judge: a tuple of `Measurement`s."""
    plan, measurements, clean = attack_plan(net, attacks, epsilons), [], judge_clean(net, test)
    for done, (name, epsilon, gradient) in enumerate(plan, start=1):
        measurements.append(measure_attack(net, test, name, epsilon, gradient, seed, threat, clean))
        progress(done, len(plan))
    return tuple(measurements)


def judge_clean(net: nn.Module, test: Split) -> stability.WorstCase:
    """The `WorstCase` of all of `test` without an attack, from which every attack can go on."""
    return stability.worst_case(net, test.images, test.labels, stability.Linf(0.0), [], judge=stability.cold_judge(net))


def measure_attack(
    net: nn.Module,
    test: Split,
    name: str,
    epsilon: float,
    gradient: str,
    seed: int,
    threat: Any = stability.Linf,
    clean: stability.WorstCase | None = None,
) -> Measurement:
    """Accuracy on all of `test` under one attack ("clean": none), along one gradient, every image counted by the judge.

    Args:
        clean: What `judge_clean` found, so that it is not judged again.

    Returns:
        A `Measurement`; its mask is in the order of the split.
    """
    threat = threat(epsilon)
    attack = [] if name == "clean" else [(name, stability.before_the_judge(stability.get_attack(name).bound(threat, seed)))]
    with configured(net, gradient=gradient):
        result = stability.worst_case(net, test.images, test.labels, threat, attack, stability.cold_judge(net), state=clean)
    hanging = stability.path_dependent(net, result.x_adv[result.untrusted]) if result.untrusted.any() else None
    return Measurement.of(
        name,
        epsilon,
        gradient,
        result.robust.cpu().numpy(),
        int(result.untrusted.sum()),
        0 if hanging is None else int(hanging.sum()),
    )


def measure_stability(
    net: nn.Module,
    images: Tensor,
    dimension: int = 40,
    progress: Progress = lambda done, total: None,
    predictors: Iterable[str] = (),
) -> tuple[tuple[Metric, ...], dict[str, Any]]:
    """Dynamics along the network at the states that `images` run through, each block at its own input.

    In float64 and with implicit steps solved to 1e-6: what is measured is the scheme, not the solver. Blocks with at most
    `DENSE_LIMIT` entries also have all eigenvalues, of the first few images; Lyapunov exponents are of fewer still. predictors:
    specs of those that are measured beside ours.

    Returns:
        (metrics, cloud): `Metric`s, whose values are means over the images, of largest_stable_h the least. cloud maps a
        stage's index to its h*lambda as [re, im] pairs (im >= 0), Ritz values of all its blocks: a sketch whose outer part is
        the most reliable.
    """
    net, images = copy.deepcopy(net).double(), images.double()
    blocks = stability.dynamics(net, images, dimension, dense_limit=DENSE_LIMIT, dense_samples=DENSE_IMAGES, progress=progress)
    further = [stability.get_predictor(spec) for spec in predictors]
    rows = [
        _row(block.stage, block.block, name, value)
        for block in blocks
        for name, value in stability.predictors(block, further).items()
    ]
    exponents, whole = stability.stage_exponents(net, images[:EXPONENT_IMAGES], tol=EXPONENT_TOL, step_tol=EXPONENT_TOL / 100)
    cloud = {}
    for index, found in enumerate(exponents):
        own = [block for block in blocks if block.stage == index]
        rows += _exponent(index, "lyapunov", found)
        bound = stability.lipschitz_bound(own)
        rows += [] if bound is None else [_row(index, None, "lipschitz_bound", bound)]
        points = torch.cat([block.ritz.flatten() for block in own]).tolist()
        cloud[str(index)] = [[round(v.real, 5), round(v.imag, 5)] for v in points if v.imag >= 0]
    return (*rows, *_exponent(None, "lyapunov_end_to_end", whole)), cloud


def _exponent(stage: int | None, metric: str, found: Any) -> list[Metric]:
    known = found.values[found.converged, 0]
    return [_row(stage, None, metric, known)] if len(known) else []


def _row(stage: int | None, block: int | None, metric: str, values: Tensor) -> Metric:
    value = values.double().min() if metric == "largest_stable_h" else values.double().nanmean()
    return Metric(stage, block, metric, float(value))


@torch.no_grad()
def measure_refinement(net: nn.Module, images: Tensor) -> Refinement | None:
    """Does a net converge to its differential equation? Its logits at finer steps against those of the exact flow.

    In float64, equations solved to `LADDER_TOL`: what is measured is the scheme, not the solver. Where a net is finer trained
    than `LADDER` begins, it begins there. None where the scheme chooses its own steps.
    """
    stage = next(iter(odenets.stages(net).values()))
    if stage.scheme.adaptive:
        return None
    net, images, spec = copy.deepcopy(net).double(), images.double(), str(stage.scheme)

    def logits(scheme: str, steps: int) -> Tensor:
        odenets.set_scheme(net, scheme, substeps=steps)
        with odenets.tightened(net, LADDER_TOL):
            return net(images.clone())

    exact = logits(EXACT, EXACT_STEPS)

    def error(found: Tensor) -> float:
        size = ((found - exact).norm(dim=1) / exact.norm(dim=1)).square().mean().sqrt().item()
        return size if size < float("inf") else float("inf")

    steps = tuple(stage.substeps * n for n in LADDER)
    steps = tuple(n for n in steps if n <= max(LADDER)) or steps[:1]
    return Refinement(steps, tuple(error(logits(spec, n)) for n in steps), error(logits(EXACT, EXACT_STEPS // 2)))


def measure_solver(net: nn.Module, split: Split, batch_size: int = 500) -> SolverStatistics | None:
    """`SolverStatistics` on a split at the scheme's own tolerance; None where it solves nothing.

    Forward on all images; backward, the gradient of the cross-entropy, on the first batch. The share of images that hang on the
    path of the solver is that of the judge's tolerance.
    """
    solved, solutions, backward = [], [], None
    for x, y in zip(split.images.split(batch_size), split.labels.split(batch_size)):
        with torch.set_grad_enabled(backward is None):
            logits, outcome = odenets.evaluate(net, x.clone())
        if outcome.converged is None:
            return None
        solved.append(outcome.converged)
        solutions += outcome.solutions
        if backward is None:
            torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), list(net.parameters()))
            backward = outcome.backward_converged
    assert backward is not None  # what was solved forwards was solved backwards
    hanging = stability.path_dependent(net, split.images)
    iterations = torch.cat([solution.iterations for solution in solutions]).double()
    evaluations = sum(solution.evaluations * len(solution.iterations) for solution in solutions)
    return SolverStatistics(
        1 - torch.cat(solved).double().mean().item(),
        1 - backward.double().mean().item(),
        iterations.mean().item(),
        int(iterations.max()),
        evaluations / len(iterations),
        path_dependent_share=None if hanging is None else hanging.double().mean().item(),
    )


@torch.no_grad()
def explain_unsolved(net: nn.Module, split: Split, count: int = 500, shown: int = 8) -> str | None:
    """Why equations stay unsolved, in sentences, from the first images that leave one so; None where there are none."""
    _, outcome = odenets.evaluate(net, (images := split.images[:count]).clone())
    solved = outcome.converged
    if solved is None or solved.all():
        return None
    with torch.enable_grad():
        found = stability.explain(net, images[~solved][:shown])
    # Of all images, not of those that were chosen because they are unsolved.
    return f"{int((~solved).sum())} of {len(images)} images leave an equation unsolved. {replace(found, unsolved=None)}"


def measure_audit(
    net: nn.Module, test: Split, epsilon: float, count: int, threat: Any = stability.Linf, extent: str = WHOLE
) -> AuditResult:
    """The audit on the first `count` test images, an `AuditResult`.

    extent: `CHEAP` is what takes seconds, and tells a net that is sick; `FULL` has PGD with 100 and with 1000 steps, 2000
    queries, images crafted on every scheme there is: minutes on a small net.
    """
    settings: dict[str, Any] = {
        CHEAP: {"checks": CHEAP_CHECKS, "steps": 10, "many_steps": 11},
        WHOLE: {},
        FULL: {"many_steps": (100, 1000), "queries": 2000, "sources": odenets.list_schemes()},
    }[extent]
    audit = stability.audit(net, test.images[:count], test.labels[:count], threat(epsilon), **settings)
    checks = tuple(
        CheckResult(check.name, check.passed, check.reason, _plain(check.figures), _plain(check.thresholds))
        for check in audit.checks
    )
    return AuditResult(audit.passed, count, epsilon, checks, extent)


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.item() if hasattr(value, "item") else value for key, value in figures.items()}
