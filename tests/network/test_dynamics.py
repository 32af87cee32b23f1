"""The dynamics of blocks against dense Jacobians, and every predictor against its formula on known matrices."""

import numpy as np
import pytest
import torch

import odenets
import stability
from stability.network.steps import step_norm, step_radius


def linear(*rows):
    M = torch.tensor(rows, dtype=torch.float64)
    return lambda t, y: y @ M.T


def normal(eigenvalues):
    """A field with these real eigenvalues and orthogonal eigenvectors."""
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    M = Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T
    return lambda t, y: y @ M.T


def zeros(n, batch=1):
    return torch.zeros(batch, n, dtype=torch.float64)


def images(count=2, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**settings):
    return odenets.ODEResNet(odenets.fields.basic_layers, (3, 3), (4, 8), in_channels=1, **settings).double().eval()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return small(scheme="implicit(tol=1e-8)", substeps=2)


def test_places_are_the_states_that_enter_the_blocks(net):
    x = images()
    along = stability.places(net, x)
    assert [(place.stage, place.block, place.time, place.step_size, place.substeps) for place in along] == [
        (0, 0, 0.0, 0.5, 2),
        (0, 1, 1.0, 0.5, 2),
        (1, 0, 0.0, 0.5, 2),
        (1, 1, 1.0, 0.5, 2),
    ]
    torch.testing.assert_close(along[0].advance(along[0].state), along[1].state)
    end = next(iter(odenets.stages(net).values()))(along[0].state)
    torch.testing.assert_close(along[1].step(along[1].step(along[1].state)), end, rtol=1e-6, atol=1e-6)
    assert all(not stage._forward_hooks and not stage._forward_pre_hooks for stage in odenets.stages(net).values())


def test_a_block_against_its_dense_jacobian(net):
    with odenets.tightened(net, 1e-6):
        place = stability.places(net, images())[3]
    block = stability.block_dynamics(place, dimension=60, dense_limit=128, dense_samples=1)
    J = stability.dense_jacobians(place.increment, place.state).numpy()
    values = np.linalg.eigvals(J[0])
    np.testing.assert_allclose(np.sort(block.eigenvalues[0].real), np.sort(values.real), atol=1e-8)
    assert block.ritz.shape == (2, 60) and block.expanding_share == pytest.approx([(values.real > 1e-8).mean()])
    R = abs(place.scheme.amplification(values))
    named = stability.predictors(block)
    assert named["mean_abs_R"] == pytest.approx([R.mean()]) and named["p95_abs_R"] == pytest.approx([np.quantile(R, 0.95)])
    assert named["fraction_outside"] == pytest.approx([(R > 1 + 1e-8).mean()])
    for i in range(2):
        assert named["max_real"][i] == pytest.approx(np.linalg.eigvals(J[i]).real.max(), rel=0.02)
        assert block.log_norm[i] == pytest.approx(np.linalg.eigvalsh((J[i] + J[i].T) / 2)[-1], rel=1e-3)
        assert block.lipschitz[i] == pytest.approx(np.linalg.norm(J[i], 2), rel=1e-3)
    dense = stability.kreiss_constant(place.increment, place.state[:1], threshold=np.linalg.eigvals(J[0]).real.max())
    assert 1.01 < block.kreiss[0] <= dense.values[0] * (1 + 1e-6)
    D = torch.autograd.functional.jacobian(place.step, place.state[:1]).reshape(128, 128).numpy()
    assert block.step_norm[0] == pytest.approx(np.linalg.norm(D, 2), rel=1e-3)
    assert block.step_radius[0] == pytest.approx(abs(np.linalg.eigvals(D)).max(), rel=0.05)


def test_a_network_gives_its_blocks_in_order_and_says_how_far_it_is():
    seen = []
    torch.manual_seed(0)
    found = stability.dynamics(small(), images(), dense_limit=128, progress=lambda *update: seen.append(update))
    assert [(block.stage, block.block) for block in found] == [(0, 0), (0, 1), (1, 0), (1, 1)] and seen[-1] == (4, 4)
    assert found[0].eigenvalues is None and found[0].expanding_share is None and found[2].eigenvalues.shape == (2, 128)


@pytest.mark.parametrize(
    ("scheme", "R"),
    [
        ("explicit", lambda z: 1 + z),
        ("implicit(tol=1e-10)", lambda z: 1 / (1 - z)),
        ("rk4", lambda z: 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24),
    ],
)
def test_predictors_of_a_normal_field(scheme, R):
    values = np.array([-4.0, -1.5, -0.5, 0.25, 0.5, -3.0])
    stage = odenets.ODEStage(normal(values.tolist()), scheme, interval=1.5)
    (block,) = stability.dynamics(stage, zeros(6, 2), dense_limit=6)
    z = 1.5 * values
    expected = {
        "step_norm": abs(R(z)).max(),
        "step_radius": abs(R(z)).max(),
        "max_abs_R": abs(R(z)).max(),
        "log_norm": 0.75,
        "max_real": 0.75,
        "spectral_radius": 6.0,
        "lipschitz": 6.0,
        "kreiss": 1.0,
        "mean_abs_R": abs(R(z)).mean(),
        "p95_abs_R": np.quantile(abs(R(z)), 0.95),
        "fraction_outside": (abs(R(z)) > 1).mean(),
        "expanding_share": 1 / 3,
        "order_star_excess": max(0, (np.log(abs(R(z))) - np.maximum(z, 0)).max()),
        "largest_stable_h": {"explicit": 0.5, "implicit(tol=1e-10)": np.inf, "rk4": 2.785293563 / 4}[scheme],
    }
    found = stability.predictors(block)
    assert found.keys() == expected.keys() == stability.PREDICTORS.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], [value] * len(found[name]), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(np.sort(block.order_star[0]), np.sort(abs(R(z)) / np.exp(z)), rtol=1e-8)


def test_the_order_star_tells_the_step_from_the_flow():
    (explicit,), (implicit,) = (
        stability.dynamics(odenets.ODEStage(normal([0.5, -0.5]), scheme), zeros(2)) for scheme in ("explicit", "implicit")
    )
    assert stability.predictors(explicit)["order_star_excess"] == 0 and (explicit.order_star < 1).all()
    assert stability.predictors(implicit)["order_star_excess"] == pytest.approx([np.log(2) - 0.5], rel=1e-4)


def test_schemes_without_R_or_without_a_step_leave_out_what_they_have_not():
    (adaptive,) = stability.dynamics(odenets.ODEStage(normal([-1.0, -2]), "adaptive"), zeros(2) + 1, dense_limit=2)
    assert adaptive.amplification is adaptive.largest_step is adaptive.growth is adaptive.order_star is None
    assert {"log_norm", "step_norm", "expanding_share"} <= stability.predictors(adaptive).keys()
    blocks = stability.dynamics(odenets.ODEStage([normal([-1.0, -2])] * 3, "ab2"), zeros(2), dense_limit=2)
    assert blocks[0].step_norm is blocks[0].step_radius is None and stability.lipschitz_bound(blocks) is None
    R = abs(odenets.get_scheme("ab2").amplification(np.array([-2, -1])))
    assert stability.predictors(blocks[0])["max_abs_R"] == pytest.approx(R.max())


def test_lipschitz_bound_is_a_product_and_bounds():
    stage = odenets.ODEStage([linear([0, 2], [0, 0]), linear([0, 0], [3, 0])], "explicit")
    blocks = stability.dynamics(stage, zeros(2, 2))
    norms = [np.linalg.norm([[1, 2], [0, 1]], 2), np.linalg.norm([[1, 0], [3, 1]], 2)]
    assert stability.lipschitz_bound(blocks) == pytest.approx([np.prod(norms)] * 2, rel=1e-4)
    assert np.prod(norms) >= np.linalg.norm(np.array([[1, 0], [3, 1]]) @ [[1, 2], [0, 1]], 2)
    stage.configure(substeps=2)
    assert stability.lipschitz_bound(stability.dynamics(stage, zeros(2))) is None


@pytest.mark.parametrize("scheme", ["explicit", "implicit(tol=1e-10)", "ab2"])
def test_exponents_of_stages(scheme):
    values = [0.3, -0.2, -1.0]
    stage = odenets.ODEStage([normal(values)] * 3, scheme, interval=0.5)
    (own,), whole = stability.stage_exponents(stage, zeros(3, 2), k=3, tol=1e-10, max_rounds=100)
    D = torch.autograd.functional.jacobian(lambda y: stage(y[None])[0], zeros(3)[0])
    expected = torch.linalg.svdvals(D).log() / 1.5
    for found in (own, whole):
        np.testing.assert_allclose(found.values, expected.expand(2, 3), atol=1e-8)
        assert found.converged.all()
    if scheme != "ab2":
        R = abs(odenets.get_scheme(scheme).amplification(0.5 * np.array(values)))
        np.testing.assert_allclose(found.values[0], np.sort(np.log(R))[::-1] / 0.5, atol=1e-8)


def test_a_contracting_field_has_no_expanding_modes():
    torch.manual_seed(0)
    net = small(field="gradient_flow", scheme="implicit")
    for place in stability.places(net, images(1))[2:]:
        block = stability.block_dynamics(place, dense_limit=128)
        assert block.log_norm.max() <= 1e-8 and block.step_norm.max() <= 1 + 1e-6
        assert block.expanding_share == 0, "what is zero up to rounding does not expand"


def test_bad_input(net):
    for x, message in ((images() / 0, "NaN or Inf"), (images()[:0], "no entries")):
        with pytest.raises(ValueError, match=message):
            stability.dynamics(net, x)
    with pytest.raises(ValueError, match="no ODEStage"):
        stability.dynamics(torch.nn.Identity(), images())


@pytest.mark.parametrize(
    "scheme", ["implicit(tol=1e-10,max_iterations=300)", "trapezoid(tol=1e-10,max_iterations=300)", "explicit"]
)
@pytest.mark.parametrize("scale", [0.3, 30.0])
def test_norm_and_radius_of_a_step_that_is_undone_or_solved(scheme, scale):
    """Ill-conditioned too: the smallest singular value of I - hJ is then far below its norm."""
    n, generator = 30, torch.Generator().manual_seed(3)
    M = -scale * torch.rand(n, generator=generator, dtype=torch.float64).diag()
    M = M + 0.05 * scale * torch.randn(n, n, generator=generator, dtype=torch.float64)
    (place,) = stability.places(odenets.ODEStage(lambda t, y: y @ M.T, scheme), zeros(n, 2) + 0.1)
    assert (place.undo is None) == ("implicit" not in scheme)
    z = np.linalg.eigvals(M.numpy())
    D = torch.autograd.functional.jacobian(lambda y: place.step(y[None])[0], zeros(n)[0]).numpy()
    np.testing.assert_allclose(step_norm(place, 1e-2), [np.linalg.norm(D, 2)] * 2, rtol=2e-3)
    np.testing.assert_allclose(step_radius(place, 1e-2), [abs(place.scheme.amplification(z)).max()] * 2, rtol=5e-2)


def test_eigenvalues_of_a_field_of_low_rank(net):
    """Half of the units rest, and their zeros are zeros: no scatter of a defective eigenvalue."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(40, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    stage = odenets.ODEStage(lambda t, y: y @ A @ B.T)
    (block,) = stability.dynamics(stage, zeros(40), dense_limit=40)
    found = np.sort_complex(block.eigenvalues[0].numpy())
    expected = np.sort_complex(np.concatenate([np.linalg.eigvals((A.T @ B).numpy()), np.zeros(28)]))
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert (block.eigenvalues[0] == 0).sum() == 28
