import numpy as np


def case(scheme, seed, epsilons=(0.05, 0.1, 0.15), total=450, gap=0.0, detached=False, audit=None, stages=2):
    """A record as the runner writes it, with accuracies that fall with epsilon and vary with the seed."""
    rng = np.random.default_rng(seed)
    margins = np.sort(rng.normal(0.115 + 0.004 * seed - gap, 0.045, total))[rng.permutation(total)]
    margins[rng.random(total) < 0.98] += 1e-9
    own = np.random.default_rng([seed, *scheme.encode()])
    margins = margins + own.normal(0, 0.012, total)

    def measurement(attack, epsilon, gradient="exact", bonus=0.0):
        mask = margins + bonus > epsilon
        return {"attack": attack, "epsilon": epsilon, "gradient": gradient, "correct": int(mask.sum()), "total": total,
                "untrusted": 2 if epsilon and "implicit" in scheme else 0, "bits": np.packbits(mask).tobytes().hex()}

    def cloud():
        return [[0.2 + 0.3 * re, abs(0.25 * im)] for re, im in own.normal(size=(90, 2))]

    blocks = [(stage, block) for stage in range(stages) for block in range(2)]
    return {
        "scheme": scheme, "substeps": 1, "training": "standard", "seed": seed, "dataset": "digits", "model": "small",
        "parameters": 65226, "trained_as": f"{scheme}(tol=0.01,max_iterations=20)" if scheme == "implicit_euler" else scheme,
        "history": [{"epoch": e, "loss": 2.3 * np.exp(-0.4 * e) + 0.01 * own.random(), "held_out": 1 - 0.9 * np.exp(-0.5 * e)}
                    for e in range(1, 16)],
        "measurements": [measurement("clean", 0.0, bonus=0.2), *(measurement("pgd20", eps) for eps in epsilons),
                         *(measurement("pgd20", eps, "detached", 0.02) for eps in epsilons if detached)],
        "stability": [{"stage": stage, "block": block, "metric": metric, "value": base + own.normal(0, 0.1)}
                      for stage, block in blocks for metric, base in (("step_norm", 1.9), ("spectral_radius", 0.9), ("log_norm", 0.5))],
        "cloud": {str(stage): cloud() for stage in range(stages)},
        "solver": {"unconverged_share": 0.0007, "iterations_mean": 8.1, "iterations_max": 17, "evaluations_mean": 9.3}
                  if "implicit" in scheme else {},
        "audit": audit, "seconds": {"training": 31.2 + own.random(), "attacks": 20.1, "stability": 5.0, "audit": 9.0}}


def verdict(passed=True):
    """An audit of three checks, the last not applicable; a failed one fails its first."""
    figures, thresholds = {"mean_error": 3.4e-9}, {"mean_error": 1e-3}
    return {"passed": passed, "checks": [
        {"name": "finite_differences", "passed": passed, "figures": figures, "thresholds": thresholds,
         "reason": "the gradient agrees with finite differences" if passed else "the gradient is not the model's derivative"},
        {"name": "more_steps", "passed": True, "figures": {"pgd20": 0.61, "pgd200": 0.60}, "thresholds": {"drop": 0.03},
         "reason": "200 steps find hardly more than 20"},
        {"name": "transfer", "passed": None, "figures": {}, "thresholds": {}, "reason": "no explicit twin was given"}]}


def run(schemes=("explicit_euler", "implicit_euler"), seeds=(0, 1, 2), smoke=False, failed=(), **settings):
    """(config, records) of a synthetic run."""
    records = [case(scheme, seed, gap=0.003 * i, detached=scheme != "explicit_euler",
                    audit=verdict(scheme not in failed) if seed == seeds[0] else None, **settings)
               for i, scheme in enumerate(schemes) for seed in seeds]
    config = {"command": "python experiments/compare_schemes.py --schemes explicit,implicit", "schemes": list(schemes),
              "seeds": list(seeds), "substeps": 1, "epsilons": [0.05, 0.1, 0.15], "attacks": ["pgd20"], "training": "standard",
              "epochs": 15, "dataset": "digits", "model": "small", "data": {"train": 1200, "held_out": 147, "test": 450},
              "environment": {"python": "3.12.3", "torch": "2.11.0", "platform": "Linux", "device": "cpu"},
              "batch_size": 64, "learning_rate": 0.006, "smoke": smoke, "version": "0.1.0"}
    return config, records
