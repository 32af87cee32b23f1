"""All spectral instruments on the same random fields: the inequalities between them, and the same refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stability

INSTRUMENTS = {
    "spectrum": lambda f, y: stability.spectrum(f, y, k=1),
    "ritz_values": stability.ritz_values,
    "log_norm": stability.log_norm,
    "spectral_norm": stability.spectral_norm,
    "singular_values": lambda f, y: stability.singular_values(f, y, k=1),
    "numerical_range": stability.numerical_range,
    "numerical_range, Lanczos": lambda f, y: stability.numerical_range(f, y, dense_limit=0),
    "pseudospectrum": stability.pseudospectrum,
    "pseudospectrum, Arnoldi": lambda f, y: stability.pseudospectrum(f, y, dense_limit=0),
    "kreiss_constant": stability.kreiss_constant,
    "departure_from_normality": stability.departure_from_normality,
    "departure_from_normality, probes": lambda f, y: stability.departure_from_normality(f, y, dense_limit=0),
    "dense_jacobians": stability.dense_jacobians,
}


def random_field(n, seed, spread):
    """y -> W tanh(V y + b) + c roll(y): neither normal nor symmetric."""
    generator = torch.Generator().manual_seed(seed)
    W, V = torch.randn(2, n, n, generator=generator, dtype=torch.float64) / n**0.5
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    scale = torch.logspace(-spread, spread, n, dtype=torch.float64)
    return lambda y: torch.tanh(y @ V.T + b) @ W.T * scale + 0.3 * torch.roll(y, 1, 1)


@settings(max_examples=8, deadline=None)
@given(n=st.integers(3, 16), seed=st.integers(0, 10**6), spread=st.floats(0, 1), dense=st.booleans())
def test_inequalities_hold_on_random_fields(n, seed, spread, dense):
    f, limit = random_field(n, seed, spread), 512 if dense else 0
    y = torch.randn(2, n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    J = torch.stack([torch.func.jacrev(f)(y[i : i + 1]).reshape(n, n) for i in range(2)])
    np.testing.assert_allclose(stability.dense_jacobians(f, y), J, atol=1e-12)
    largest, rightmost = (stability.spectrum(f, y, k=1, which=which).values[:, 0] for which in ("LM", "LR"))
    norm, mu = stability.spectral_norm(f, y), stability.log_norm(f, y)
    singular = stability.singular_values(f, y, k=min(n, 3))
    W = stability.numerical_range(f, y, angles=8, dense_limit=limit)
    slack = 1e-7 * norm
    assert (rightmost.real <= mu + slack).all() and (mu <= norm + slack).all() and (largest.abs() <= norm + slack).all()
    assert (norm <= singular.norm_bound + slack).all()
    np.testing.assert_allclose(singular.values, torch.linalg.svdvals(J)[:, : min(n, 3)], rtol=1e-7)
    np.testing.assert_allclose(W.support[:, 0], mu, atol=float(slack.max()))
    assert (W.points.abs().amax(1) <= norm + slack).all() and (norm / 2 <= 1.2 * W.support.amax(1) + slack).all()
    # The resolvent is at least that of the distance to the spectrum, at most that of the distance to W(J).
    eigenvalues, z = torch.linalg.eigvals(J), mu.max() + torch.tensor([0.5, 2.0, 1 + 3j])
    p = stability.pseudospectrum(f, y, points=z, dense_limit=limit)
    distance = (z - eigenvalues[:, :, None]).abs().amin(1)
    assert p.exact == dense and (p.smallest >= (z.real - mu[:, None]) - slack[:, None]).all()
    if dense:
        assert (p.smallest <= distance + slack[:, None]).all()
    # Beyond the log-norm nothing grows: e^{tJ} contracts after the shift.
    K = stability.kreiss_constant(f, y[:1], threshold=mu[:1], dense_limit=limit)
    assert K.values[0] == pytest.approx(1, abs=1e-6)


def test_instruments_leave_parameters_and_modes_alone():
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).double()
    y = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for instrument in INSTRUMENTS.values():
        for mode in (torch.enable_grad, torch.inference_mode):
            with mode():
                instrument(layer, y)
    assert y.grad is None and all(parameter.grad is None for parameter in layer.parameters()) and layer.training


@pytest.mark.parametrize("instrument", INSTRUMENTS.values(), ids=INSTRUMENTS)
@pytest.mark.parametrize(
    ("f", "y", "message"),
    [
        (torch.sin, torch.tensor([[1.0, float("nan")]]), "y holds NaN or Inf"),
        (torch.sin, torch.tensor([[1.0, float("inf")]]), "y holds NaN or Inf"),
        (torch.sin, torch.rand(0, 3), "no entries"),
        (torch.sin, torch.ones(1, 2, dtype=torch.int64), "floating-point"),
        (torch.sin, torch.rand(1, 3).half(), "float32 or float64, got torch.float16"),
        (torch.sin, torch.rand(1, 3).bfloat16(), "float32 or float64, got torch.bfloat16"),
        (lambda y: y[:, :1], torch.rand(1, 3), "keep the shape"),
        (lambda y: y.double(), torch.rand(1, 3), "keep the dtype"),
        (lambda y: y.half(), torch.rand(1, 3), "keep the dtype"),
        (torch.log, -torch.rand(1, 3), "f gives NaN or Inf"),
        (torch.nn.BatchNorm1d(3), torch.rand(4, 3), "BatchNorm in training mode"),
        (lambda y: y - y.mean(0), torch.rand(4, 3), "mixes the samples"),
        (lambda y: y.detach(), torch.rand(1, 3), "autograd"),
    ],
)
def test_every_instrument_refuses_in_one_sentence(instrument, f, y, message):
    with pytest.raises(ValueError, match=message) as refusal:
        instrument(f, y)
    assert "\n" not in str(refusal.value)
