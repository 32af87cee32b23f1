"""One step of every one-step scheme on a random linear system against a rational function of a dense matrix."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import odenets

ONE_STEP = [name for name in odenets.list_schemes() if name != "adaptive" and not odenets.get_scheme(name).previous]


def matrix_function(scheme, Z):
    """The step on y' = M y as a dense matrix, Z = h M: R(Z), or what the scheme's own formula makes of a matrix."""
    identity = np.eye(len(Z))
    if scheme.tableau is not None:  # R(Z) = I + (b^T x Z)(I - A x Z)^-1 (1 x I)
        A, b = scheme.tableau.A, scheme.tableau.b[None]
        stages = np.linalg.solve(np.eye(A.size // len(A) * len(Z)) - np.kron(A, Z), np.kron(np.ones((len(A), 1)), identity))
        return identity + np.kron(b, Z) @ stages
    if scheme.name == "ie_skip":  # not a function of Z alone: the transpose comes in
        return identity + Z + 2 * scheme.gamma * (identity - Z).T @ Z @ Z
    if scheme.name == "exponential_euler":
        return scipy.linalg.expm(Z)
    if scheme.name == "rosenbrock_euler":
        return np.linalg.inv(identity - Z)
    if scheme.name == "splitting":  # without parts: implicit midpoint
        return np.linalg.solve(identity - Z / 2, identity + Z / 2)
    # ros2, Verwer et al. (1999): R = (1 + (1 - 2 gamma) z + (gamma^2 - 2 gamma + 1/2) z^2) / (1 - gamma z)^2.
    gamma = 1 - 0.5**0.5
    denominator = np.linalg.inv(identity - gamma * Z)
    return denominator @ denominator @ (identity + (1 - 2 * gamma) * Z + (gamma**2 - 2 * gamma + 0.5) * Z @ Z)


systems = st.integers(1, 4).flatmap(lambda n: st.lists(st.floats(-3, 3), min_size=n * n, max_size=n * n))


@pytest.mark.parametrize("name", ONE_STEP)
@given(system=systems, h=st.floats(0.05, 1.0))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_one_step_on_a_linear_system_is_the_matrix_function(name, system, h):
    M = np.reshape(system, (-1, round(len(system) ** 0.5)))
    # Shifted until mu_2(M) <= 1/2: no eigenvalue near a pole, whose equation no solver could solve.
    M -= max(0, np.linalg.eigvalsh((M + M.T) / 2).max() - 0.5) * np.eye(len(M))
    parameters = odenets.get_scheme(name).parameters
    newton = ",solver=newton" if "solver" in parameters else ""
    scheme = odenets.get_scheme(f"{name}(tol=1e-13,max_iterations=200{newton})" if "tol" in parameters else name)
    field = torch.from_numpy(M)
    rows = scheme.step(lambda t, y: y @ field.mT, 0.0, torch.eye(len(M), dtype=torch.float64), h)
    wanted = matrix_function(scheme, h * M)
    np.testing.assert_allclose(rows.mT.numpy(), wanted, rtol=0, atol=1e-9 * max(1, np.abs(wanted).max()))
