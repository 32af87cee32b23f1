"""Records and configurations for tests: the one builder of them."""

from dataclasses import replace

import numpy as np

from experiments.harness.report.arms import comparison
from experiments.harness.run.config import RunConfig
from experiments.harness.run.schema import (
    AuditResult,
    CheckResult,
    Measurement,
    Metric,
    Record,
    Refinement,
    SolverStatistics,
)
from experiments.harness.training.epoch import Epoch
from experiments.harness.training.settings import TrainingSettings


def record(scheme="explicit_euler", seed=0, **changes):
    """A record of a net of which next to nothing is known."""
    given = {
        "scheme": scheme,
        "seed": seed,
        "substeps": 1,
        "dataset": "digits",
        "model": "small",
        "training": "standard",
        "trained_as": scheme,
    }
    given |= changes
    return Record(**given | {"trained_substeps": given.get("trained_substeps", given["substeps"])})


def described(**changes):
    """What a checkpoint says of its net, as far as `checkpoints.META` goes."""
    given = {"model": "small", "num_classes": 10, "in_channels": 1, "scheme": "explicit_euler", "substeps": 1}
    given |= {"dataset": "digits", "seed": 1, "training": "standard", "epochs": 1, "epoch": 1, "config": {}}
    return given | changes


def measurement(attack, epsilon, mask, gradient="exact", untrusted=0):
    """What an attack left standing."""
    return Measurement.of(attack, epsilon, gradient, np.asarray(mask, dtype=bool), untrusted)


def measured(scheme, seed, epsilons=(0.05, 0.1, 0.15), total=450, gap=0.0, detached=False, audit=None, stages=2):
    """A record as the runner writes it, with accuracies that fall with epsilon and vary with the seed."""
    rng = np.random.default_rng(seed)
    margins = np.sort(rng.normal(0.115 + 0.004 * seed - gap, 0.045, total))[rng.permutation(total)]
    margins[rng.random(total) < 0.98] += 1e-9
    own = np.random.default_rng([seed, *scheme.encode()])
    margins = margins + own.normal(0, 0.012, total)
    untrusted = 2 if "implicit" in scheme else 0

    def under(attack, epsilon, gradient="exact", bonus=0.0):
        return measurement(attack, epsilon, margins + bonus > epsilon, gradient, untrusted if epsilon else 0)

    def cloud():
        return [[0.2 + 0.3 * re, abs(0.25 * im)] for re, im in own.normal(size=(90, 2))]

    blocks = [(stage, block) for stage in range(stages) for block in range(2)]
    history = tuple(Epoch(e, 2.3 * np.exp(-0.4 * e) + 0.01 * own.random(), 1 - 0.9 * np.exp(-0.5 * e)) for e in range(1, 16))
    measurements = (
        under("clean", 0.0, bonus=0.2),
        *(under("pgd20", eps) for eps in epsilons),
        *(under("pgd20", eps, "detached", 0.02) for eps in epsilons if detached),
    )
    metrics = tuple(
        Metric(stage, block, metric, base + own.normal(0, 0.1))
        for stage, block in blocks
        for metric, base in (("step_norm", 1.9), ("log_norm", 0.5))
    )
    solver = SolverStatistics(0.0007, 0.0321, 8.1, 17, 9.3, None, 0.0432, 0.0155) if "implicit" in scheme else None
    return record(
        scheme,
        seed,
        parameters=65226,
        history=history,
        measurements=measurements,
        stability=metrics,
        trained_as=f"{scheme}(tol=0.01,max_iterations=20)" if scheme == "implicit_euler" else scheme,
        cloud={str(stage): cloud() for stage in range(stages)},
        solver=solver,
        audit=audit,
        seconds={"training": 31.2 + own.random(), "attacks": 20.1, "stability": 5.0, "audit": 9.0},
    )


def verdict(passed=True):
    """An audit of three checks, the last not applicable; a failed one fails its first."""
    agrees = "the gradient agrees with finite differences" if passed else "the gradient is not the model's derivative"
    return AuditResult(
        passed,
        64,
        0.1,
        (
            CheckResult("finite_differences", passed, agrees, {"mean_error": 3.4e-9}, {"mean_error": 1e-3}),
            CheckResult(
                "more_steps", True, "200 steps find hardly more than 20", {"pgd20": 0.61, "pgd200": 0.60}, {"drop": 0.03}
            ),
            CheckResult("transfer", None, "no explicit twin was given", {}, {}),
        ),
    )


def config(schemes=("explicit_euler", "implicit_euler"), seeds=(0, 1, 2), **changes):
    """The configuration of a synthetic run."""
    given = {
        "experiment": "compare_schemes",
        "command": "python experiments/compare_schemes.py --schemes explicit,implicit",
        "epsilons": (0.05, 0.1, 0.15),
        "attacks": ("pgd20",),
        "dataset": "digits",
        "model": "small",
        "settings": TrainingSettings(epochs=15).resolved(),
        "data": {"train": 1200, "held_out": 147, "test": 450},
        "environment": {"python": "3.12.3", "torch": "2.11.0", "platform": "Linux", "device": "cpu"},
    }
    return RunConfig(schemes=tuple(schemes), seeds=tuple(seeds), **given | changes)


def run(schemes=("explicit_euler", "implicit_euler"), seeds=(0, 1, 2), smoke=False, failed=(), **settings):
    """(config, records) of a synthetic run, the first seed's nets audited."""
    records = [
        measured(
            scheme,
            seed,
            gap=0.003 * i,
            detached=scheme != "explicit_euler",
            audit=verdict(scheme not in failed) if seed == seeds[0] else None,
            **settings,
        )
        for i, scheme in enumerate(schemes)
        for seed in seeds
    ]
    return config(schemes, seeds, smoke=smoke), records


def compared(*arguments, **settings):
    """`run` as a `Comparison`."""
    return comparison(*run(*arguments, **settings))


UNMEASURED = {"cloud": {}, "stability": (), "history": (), "seconds": {}, "audit": None}


def sweep(seeds=(0, 1, 2), schemes=("explicit_euler", "rk4"), orders=(1.0, 2.0), lost=0):
    """Both schemes trained with 1 and 2 steps, those with 1 run with 2 and swapped."""
    records = []
    for scheme, order in zip(schemes, orders):
        for seed in seeds:
            base = measured(scheme, seed, detached=False)
            rate = order + 0.01 * seed
            refined = Refinement((1, 2, 4, 8), tuple(0.1 * n**-rate for n in (1, 2, 4, 8)), 1e-9)
            other = next(name for name in schemes if name != scheme)
            worse = measured(scheme, seed, gap=0.05)
            worse = tuple(replace(m, untrusted=lost) for m in worse.measurements)
            records += [
                replace(base, refinement=refined, trained_as=scheme),
                replace(base, substeps=2, trained_substeps=2, **UNMEASURED),
                replace(base, substeps=2, **UNMEASURED),
                replace(base, scheme=other, trained_as=scheme, swapped=True, measurements=worse, **UNMEASURED),
            ]
    changes = {"experiment": "sweep_steps", "substeps": (1, 2), "reads": ("finer", "trained", "swap")}
    return comparison(config(schemes, seeds, **changes), records)
