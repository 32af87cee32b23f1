"""Eigenvalues of Jacobians beside LAPACK and ARPACK, as ratios measured side by side in this run.

dense_4096 is the dense Jacobian of a block of 16x16x16 and LAPACK, dense_1024 the
same on 16x8x8. ARPACK is looped over a few images and its mean time taken for all: once as SciPy's users
would, on `stability.jacobian(f, y)` and its forward products, once on its transpose, whose backward products keep their
graph and are as cheap as ours.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import eigs
from torch import Tensor
from torch.nn import functional as F

import odenets
import stability
from experiments.benchmarks.memory import peak_bytes
from experiments.benchmarks.timing import Rows, Times, fastest, take_turns, timed
from experiments.harness.training import data

K, WHICH = 6, "LR"  # eigenvalues wanted
LOOPED = 2  # images that ARPACK is looped over in each block


def against_dense(size: int, target: float | None, device: torch.device, smoke: bool) -> Rows:
    """The 6 rightmost eigenvalues of a block of 16 x size x size against a dense Jacobian and LAPACK."""
    torch.manual_seed(0)
    block = odenets.fields.Block(odenets.fields.basic_layers, 16).to(device, torch.float64)
    y, f = torch.randn(1, 16, size, size, dtype=torch.float64, device=device), partial(block, 0.0)

    def dense() -> np.ndarray:
        J = torch.func.jacrev(f, chunk_size=64)(y).reshape(y.numel(), -1)
        return np.linalg.eigvals(J.detach().cpu().numpy())

    ours = partial(stability.spectrum, f, y, K, WHICH)
    (mine, found), (theirs, eigenvalues) = timed(ours, device), timed(dense, device)
    mine = min(mine, *fastest([ours], 1 if smoke else 2, device))
    values = found.values[0].numpy()
    rightmost = eigenvalues[np.argsort(-eigenvalues.real)][: len(values) + 1]  # one more: a pair may be cut
    matrix, name = y.numel() ** 2 * y.element_size(), f"{len(values)} rightmost eigenvalues, n = {y.numel()}"
    yield f"{name}: seconds", mine, None
    yield f"{name}: time / dense Jacobian and LAPACK", mine / theirs, target
    yield f"{name}: largest residual", float(found.residuals.max()), 1e-8
    yield f"{name}: distance from LAPACK's", float(abs(values[:, None] - rightmost).min(1).max()), 1e-6
    yield f"{name}: peak memory / dense matrix", peak_bytes(ours, [y, *block.parameters()], device) / matrix, None
    yield f"{name}: memory as told beforehand / dense matrix", stability.krylov_memory(y).bytes / matrix, None


def dense_1024(device: torch.device, smoke: bool) -> Rows:
    """16x8x8 against LAPACK."""
    return against_dense(4 if smoke else 8, None, device, smoke)


def dense_4096(device: torch.device, smoke: bool) -> Rows:
    """16x16x16 against LAPACK."""
    return against_dense(5 if smoke else 16, 1 / 20, device, smoke)


def images(device: torch.device, smoke: bool, whole: bool = False) -> Rows:
    """64 images, or 256, in every second block of ode_resnet18, or each, against a loop of SciPy's ARPACK over images.

    The spread is that of the blocks.
    """
    for dtype, tol, count in ((torch.float32, 1e-4, 256 if whole else 64), (torch.float64, 1e-8, 32 if whole else 8)):
        count, looped = (3, 1) if smoke else (count, LOOPED)
        places = _places(count, dtype, device)[-1 if smoke else 0 :: 1 if whole else 2]
        costs, unconverged, difference = np.zeros((len(places), 3)), 0, 0.0
        for block, place in enumerate(places):
            costs[block, 0], found = timed(partial(stability.spectrum, place.slope, place.state, K, WHICH, tol=tol), device)
            unconverged += int((~found.converged).any(1).sum())
            for i in range(looped):
                J = stability.jacobian(place.slope, place.state[i : i + 1])
                start = np.random.default_rng(0).normal(size=J.shape[0]).astype(J.dtype)
                for column, A in ((1, J), (2, J.T)):
                    run = partial(eigs, A, K, which=WHICH, tol=tol, v0=start, return_eigenvectors=False)
                    seconds, values = timed(run, device)
                    costs[block, column] += seconds * count / looped
                    difference = max(difference, float(abs(values.real.max() - found.values[i, 0].real)))
        name = f"{count} images, {len(places)} blocks, {str(dtype).split('.')[1]}"
        totals, times = costs.sum(0), Times(costs.tolist())
        yield f"{name}: milliseconds for each image and block", 1e3 * totals[0] / count / len(places), None
        for column, way, target in ((1, "ARPACK looped", 1 / 5), (2, "ARPACK looped on backward products", None)):
            row = times.ratio(f"{name}: time / {way}", 0, column, target, f"ARPACK's scaled from {looped} images a block")
            yield row._replace(measured=totals[0] / totals[column])
        yield f"{name}: unconverged", unconverged, 0
        yield f"{name}: largest difference of the rightmost real parts", difference, 100 * tol


def batches(device: torch.device, smoke: bool) -> Rows:
    """Cost of an image as the batch grows, over every second block; the spread is that of the blocks."""
    sizes = (1, 4) if smoke else (1, 8, 64)
    costs = []
    for place in _places(sizes[-1], torch.float32, device)[-1 if smoke else 0 :: 2]:
        parts = [place.state[: max(4 if smoke else 8, size)].split(size) for size in sizes]
        (seconds,) = take_turns([partial(_each, place, own) for own in parts], 1, device).seconds
        costs.append([time / sum(map(len, own)) for time, own in zip(seconds, parts)])
    for index, size in enumerate(sizes[1:], 1):
        figure = f"{size} images at once: time for each / with {sizes[index - 1]}"
        total, before = (sum(cost[at] for cost in costs) for at in (index, index - 1))
        yield Times(costs).ratio(figure, index, index - 1, 1.0)._replace(measured=total / before)


def _each(place: stability.Place, parts: Iterable[Tensor]) -> None:
    for states in parts:
        stability.spectrum(place.slope, states, K, WHICH)


def _places(count: int, dtype: torch.dtype, device: torch.device) -> list[stability.Place]:
    torch.manual_seed(0)
    net = odenets.ode_resnet18(in_channels=1).to(device, dtype).eval()
    digits = data.load("digits").train.first(count).images
    return stability.places(net, F.interpolate(digits, (28, 28), mode="bilinear").to(device, dtype))
