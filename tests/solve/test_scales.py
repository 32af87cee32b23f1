"""Magnitudes: what is scaled gives what is scaled, where squares of the numbers leave the range of the dtype too."""

import numpy as np
import pytest
import torch

import odenets
import stability
from odenets.solve.scaling import power_of_two, scaled_norm
from stability.network.penalty import log_norm_estimate

SOLVERS = ["anderson", "newton", "fixed_point"]
EXPONENTS = (-60, -23, 0, 17, 60)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_any_magnitude(dtype):
    v, limits = random(4, 50).to(dtype), torch.finfo(dtype)
    exponents = range(int(np.log2(limits.tiny)) + 30, int(np.log2(limits.max)) - 8, 13)
    for k in exponents:
        assert torch.equal(scaled_norm(torch.ldexp(v, torch.tensor(k))), torch.ldexp(scaled_norm(v), torch.tensor(k)))
    assert torch.equal(scaled_norm(v), torch.linalg.vector_norm(v, dim=1))  # to the bit where nothing leaves the range
    odd = torch.tensor([[0.0, 0], [torch.inf, 1], [torch.nan, 1], [limits.max, 1], [-limits.tiny / 4, 0]], dtype=dtype)
    unit = power_of_two(odd)[:, 0]
    assert unit[:3].eq(1).all() and (odd[3:].abs().amax(1) / unit[3:]).ge(1).all() and unit.isfinite().all()


@pytest.mark.parametrize("spec", [*odenets.list_schemes(), *(f"implicit(solver={name})" for name in SOLVERS)])
def test_a_linear_field_gives_the_same_at_every_magnitude(spec, device):
    M, y, scheme = 0.4 * random(6, 6), random(3, 6, seed=1), odenets.get_scheme(spec)
    scheme = scheme.tightened(1e-6, 100) if scheme.implicit else scheme

    def stage(dtype):
        return odenets.ODEStage([lambda t, y: y @ M.to(y).T] * 2, scheme).to(device, dtype)

    start = y.to(device).requires_grad_()
    expected = stage(torch.float64)(start)
    (slope,) = torch.autograd.grad(expected[:, 0].sum(), start)
    for exponent in (-25, -20, 0, 25):
        run = stage(torch.float32)
        state = (y * 10.0**exponent).float().to(device).requires_grad_()
        value = run(state)
        error = (value.double() / 10.0**exponent - expected).norm(dim=1) / expected.norm(dim=1)
        solved = not scheme.implicit or bool(run.stats.converged.all())
        assert solved or spec.endswith("fixed_point)"), "a method that contracts converges"
        assert error.max() < (1e-3 if spec == "adaptive" else 1e-5)
        (gradient,) = torch.autograd.grad(value[:, 0].sum(), state)
        assert torch.allclose(gradient.double(), slope, rtol=1e-2, atol=1e-3)  # of a linear map: the same everywhere
        if exponent == 0:
            (small,) = torch.autograd.grad(run(state)[:, 0].sum() * 1e-25, state)  # backward solves as well
            assert torch.allclose(small * 1e25, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_fields_of_any_magnitude_are_right_or_unconverged(size):
    M, y = 0.4 * random(6, 6), random(3, 6, seed=1)
    expected = torch.linalg.solve(torch.eye(6).double() - size * M, y.T).T
    for name in ("broyden", *SOLVERS):
        stage = odenets.ODEStage([lambda t, y: size * (y @ M.to(y).T)], f"implicit_euler(solver={name})")
        error = (stage(y.float()) - expected).norm(dim=1) / expected.norm(dim=1)
        assert not stage.stats.converged[error > 1e-2].any()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_fixed_iterations_beyond_the_range_are_not_called_converged(size):
    M, y = 0.4 * random(6, 6), random(3, 6, seed=1)
    for scale, converged in ((1.0, True), (size, False)):
        stage = odenets.ODEStage([lambda t, y: y @ M.to(y).T], "implicit_euler(fixed=true,max_iterations=12)")
        stage((scale * y).float())
        assert stage.stats.converged.eq(converged).all()
    # Next to a state of size 1 so small a field is below rounding, and zero is zero.
    for field in (lambda t, y: 1e-25 * y, lambda t, y: 0 * y):
        stage = odenets.ODEStage([field], "implicit_euler(fixed=true,max_iterations=12)")
        assert torch.equal(stage(y.float()), y.float()) and stage.stats.converged.all()


def instruments(n):
    """name -> (f, y) -> numbers that are multiplied by 2^k where f is."""
    small = {"dense_limit": n - 1}
    z = np.array([0.3 + 0.2j, 2.0, -1j])
    return {
        "spectral_norm": lambda f, y, c: stability.spectral_norm(f, y),
        "log_norm": lambda f, y, c: stability.log_norm(f, y),
        "spectrum": lambda f, y, c: stability.spectrum(f, y, 3).values.abs(),
        "ritz_values": lambda f, y, c: stability.ritz_values(f, y, 8).abs().sort()[0],
        "singular_values": lambda f, y, c: stability.singular_values(f, y, 3).values,
        "norm_bound": lambda f, y, c: stability.singular_values(f, y, 3).norm_bound,
        "numerical_range": lambda f, y, c: stability.numerical_range(f, y, 6).support,
        "numerical_range, Lanczos": lambda f, y, c: stability.numerical_range(f, y, 6, **small).support,
        "pseudospectrum": lambda f, y, c: stability.pseudospectrum(f, y, z * c).smallest,
        "pseudospectrum, Arnoldi": lambda f, y, c: stability.pseudospectrum(f, y, z * c, dimension=8, **small).smallest,
        "departure": lambda f, y, c: stability.departure_from_normality(f, y).henrici,
        "commutator": lambda f, y, c: stability.departure_from_normality(f, y).commutator.sqrt(),
        "commutator, probes": lambda f, y, c: stability.departure_from_normality(f, y, **small).commutator.sqrt(),
        "penalty": lambda f, y, c: log_norm_estimate(f, y, 4).detach(),
        "lyapunov": lambda f, y, c: stability.lyapunov_exponents(f, y, 2).values.exp(),
        "kreiss": lambda f, y, c: c * stability.kreiss_constant(f, y, threshold=2.0 * c).values,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", instruments(2))
def test_an_operator_scaled_scales_the_answer(name, dtype):
    n = 12
    M, y = (random(n, n) / n**0.5).to(dtype), random(2, n, seed=1).to(dtype)
    measure, found = instruments(n)[name], {}
    for k in EXPONENTS if "kreiss" not in name else EXPONENTS[::2]:
        found[k] = measure(lambda y, c=2.0**k: c * (y @ M.T), y, 2.0**k).double() / 2.0**k
    for value in found.values():
        np.testing.assert_allclose(value, found[0], rtol=2e-4 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e19, 1e30])
def test_norms_of_tiny_and_huge_operators_against_lapack(size, recwarn):
    M, y = random(30, 30), torch.zeros(2, 30)
    f = lambda y: y @ (size * M).float().T  # noqa: E731
    np.testing.assert_allclose(stability.spectral_norm(f, y), [size * torch.linalg.matrix_norm(M, 2)] * 2, rtol=1e-4)
    s = stability.singular_values(f, y, 4)
    assert s.converged.all() and not [w for w in recwarn if "lower bound" in str(w.message)]
    np.testing.assert_allclose(s.values[0], size * torch.linalg.svdvals(M)[:4], rtol=1e-4)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_growth_and_radii_of_any_magnitude(size):
    M, x = 0.4 * random(6, 6), random(3, 6, seed=1)
    stage = odenets.ODEStage([lambda t, y: y @ M.to(y).T] * 2, "rk4")
    expected = stability.growth(stage, x, random(3, 6, seed=2))
    found = stability.growth(stage, (size * x).float(), (size * random(3, 6, seed=2)).float())
    np.testing.assert_allclose(found.linear, expected.linear, rtol=1e-4)
    np.testing.assert_allclose(found.measured, expected.measured, rtol=1e-3)
    delta = (size * x).float()
    np.testing.assert_allclose(stability.L2(1.0).size(delta).double(), size * x.norm(dim=1), rtol=1e-5)
    np.testing.assert_allclose(
        stability.L2(size).project(2 * delta).double().norm(dim=1), size * (2 * x).norm(dim=1).clamp_max(1), rtol=1e-5
    )
