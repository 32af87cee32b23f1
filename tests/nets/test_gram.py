"""The norm of a convolution on a finite grid: above the true one by proof and in fact, and hardly more than that."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from odenets.nets import gram
from odenets.nets.convolution import operator_bound
from odenets.nets.gram import grid_bound


def dense_norm(weight, size, groups=1):
    y = torch.eye(groups * weight.shape[1] * size[0] * size[1], dtype=torch.float64).view(-1, groups * weight.shape[1], *size)
    padding = [kernel // 2 for kernel in weight.shape[2:]]
    return torch.linalg.matrix_norm(F.conv2d(y, weight.double(), padding=padding, groups=groups).flatten(1), 2).item()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    groups=st.integers(1, 2),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    positive=st.booleans(),
)
def test_it_is_above_the_norm_and_within_a_hundredth_of_it(seed, channels, kernel, size, groups, scale, positive):
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(groups * channels[0], channels[1], *kernel, generator=generator, dtype=torch.float64)
    weight = weight.abs() if positive else weight  # the worst case of the bound for all sizes: smooth waves
    exact = dense_norm(weight, size, groups)
    assert exact <= grid_bound(weight, size, groups) <= 1.01 * exact
    assert exact <= operator_bound(weight, groups).item()


def test_float32_weights_of_a_trained_size():
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    exact = dense_norm(weight, (7, 7))
    assert exact <= operator_bound(weight, size=(7, 7)).item() <= 1.01 * exact and exact <= operator_bound(weight).item()


def test_a_bound_below_the_norm_is_never_proven(monkeypatch):
    """However wrong the estimate that it starts from: the factorisation fails until the bound holds."""
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact, estimate = dense_norm(weight, (4, 5)), gram._estimate
    for share in (0.3, 0.9, 0.999, 1 - 1e-12):
        monkeypatch.setattr(gram, "_estimate", lambda *arguments, share=share: share * estimate(*arguments))
        assert exact <= grid_bound(weight, (4, 5)) <= 1.02 * exact
    for below in (1 - 1e-6, 1 - 1e-12):
        assert not gram._is_above(gram._gram_blocks(weight, (4, 5)), 4, below * exact**2, 54)


def test_beyond_the_work_of_a_proof_the_torus_bounds(monkeypatch):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).abs()
    monkeypatch.setattr(gram, "WORK", 0)
    for size in ((1, 2), (3, 4), (8, 8)):
        exact = dense_norm(weight, size)
        assert exact <= grid_bound(weight, size) <= 2 * exact or size == (1, 2)
        assert exact <= grid_bound(weight, size)


def test_nothing_has_norm_nothing():
    assert grid_bound(torch.zeros(2, 2, 3, 3), (4, 4)) == 0
