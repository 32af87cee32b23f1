"""What compare_schemes measures: attacks meet the judge's function, and every scheme the same noise."""

import numpy as np
import pytest
import torch
from audited import sample, weights, widened

import odenets
import stability
from experiments.harness.run import measure as evaluation
from experiments.harness.training import data
from stability.attacks.catalogue import Bound
from stability.attacks.threats import THREATS


@pytest.fixture(scope="module")
def trained():
    """A small net with weights that were trained implicitly, and 100 digits."""
    net = odenets.ode_resnet_small(scheme="implicit(tol=1e-2)")
    net.load_state_dict(widened(weights("implicit")))
    return net.eval(), data.Split(*sample(100))


def test_a_loose_tolerance_does_not_look_robust(trained):
    net, test = trained
    robust = {}
    for tol in (1e-6, 0.3):
        odenets.set_scheme(net, f"implicit(tol={tol})")
        robust[tol] = evaluation.measure_attack(net, test.first(60), "pgd10", 0.1, "exact", 0).correct
    assert abs(robust[0.3] - robust[1e-6]) <= 3, "an attack on the equations as loosely solved leaves about 15 more standing"


def test_every_kind_of_attack_is_judged_in_the_ball_it_is_held_to(trained):
    net, test = trained
    odenets.set_scheme(net, "explicit")
    names, correct = ["fgsm", "pgd5", "apgd8-t", "square20", "noise5"], {}
    for norm, threat in THREATS.items():
        measured = evaluation.measure_accuracy(net, test.first(40), names, [0.3], seed=0, threat=threat)
        assert [m.attack for m in measured] == ["clean", *names]
        correct[norm] = {m.attack: m.correct for m in measured}
    # A ball of radius 0.3 in the 2-norm lies deep within that of the maximum norm.
    assert all(correct["linf"][name] < correct["l2"][name] < correct["l2"]["clean"] for name in ("pgd5", "apgd8-t"))
    assert all(correct["linf"][name] <= correct["l2"][name] for name in names)


def test_an_image_gets_its_noise_whatever_becomes_of_the_others():
    seen = {}

    def attack(net, x, y, threat, generator, indices):
        adversarial = stability.pgd(net, x, y, threat, steps=1, step_size=0.0, generator=generator, indices=indices)
        seen.update(zip(indices.tolist(), adversarial))
        return adversarial

    x = torch.full((4, 1, 2, 2), 0.5)
    net = lambda x: torch.stack([1 + 0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)  # noqa: E731  always class 0
    starts = []
    for labels in ([0, 0, 0, 0], [1, 0, 1, 0]):
        seen.clear()
        attack_ = stability.before_the_judge(Bound(attack, stability.Linf(0.1), seed=3))
        wrapped = torch.nn.Module()
        wrapped.forward = net
        stability.worst_case(wrapped, x, torch.tensor(labels), stability.Linf(0.1), [("start", attack_)])
        starts.append(dict(seen))
    assert torch.equal(starts[0][3], starts[1][3]) and not torch.equal(starts[0][3], starts[0][2])


def test_solver_statistics_go_through_the_split_in_batches(trained):
    net, test = trained
    odenets.set_scheme(net, "implicit(tol=1e-2)")
    one, many = (evaluation.measure_solver(net, test, batch_size) for batch_size in (100, 30))
    assert one.iterations_mean == pytest.approx(many.iterations_mean) and 0 <= one.backward_unconverged_share <= 1
    odenets.set_scheme(net, "explicit")
    assert evaluation.measure_solver(net, test) is None


def test_stability_rows_are_extreme_quantities(trained):
    net, test = trained
    rows, cloud = evaluation.measure_stability(net, test.images[:2], dimension=10)
    blocks = {row.metric for row in rows if row.block is not None}
    assert blocks == stability.PREDICTORS.keys() and set(cloud) == {"0", "1"}
    assert {(row.metric, row.stage) for row in rows if row.block is None} == {
        *((metric, stage) for metric in ("lyapunov", "lipschitz_bound") for stage in (0, 1)),
        ("lyapunov_end_to_end", None),
    }
    shares = {(row.stage, row.block) for row in rows if row.metric == "mean_abs_R"}
    assert shares == {(1, 0), (1, 1)}, "means over all eigenvalues, where the state is small"
    assert all(row.value > 0 for row in rows if row.metric in ("spectral_radius", "max_abs_R", "log_norm", "step_norm"))
    bound = next(row.value for row in rows if (row.metric, row.stage) == ("lipschitz_bound", 0))
    assert next(row.value for row in rows if (row.metric, row.stage) == ("lyapunov", 0)) <= np.log(bound) / 2 + 1e-6
