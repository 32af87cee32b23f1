"""Attacks without gradients: known optima, masked gradients, the geometry of Square's windows, and their cost."""

import pytest
import torch
from attack_problems import hilly_net, images, linear_net, margins, robust

import stability
from stability import L2, Linf
from stability.attacks import random_search as black_box


class Unattackable(torch.autograd.Function):
    """The identity, whose backward pass nobody may ask for."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a black-box attack asked for a gradient")


@pytest.mark.parametrize("threat", [Linf(0.15), L2(0.5)])
def test_masked_gradients_do_not_help(threat):
    """Rounding the images hides every gradient: PGD finds nothing, Square and even noise do."""
    net, x = hilly_net(), images(64)
    masked = lambda x: net((Unattackable.apply(x) * 50).round() / 50)  # noqa: E731
    rounded = lambda x: net((x * 50).round() / 50 + 0 * x)  # noqa: E731
    y = masked(x).argmax(1)
    by_pgd = robust(masked, stability.pgd(rounded, x, y, threat, random_start=False), y)
    by_noise = robust(masked, stability.noise(masked, x, y, threat, draws=50), y)
    by_square = robust(masked, stability.square(masked, x, y, threat, queries=200), y)
    assert by_square < by_noise < by_pgd == len(x)


@pytest.mark.no_pretend
@pytest.mark.parametrize(
    "threat, worst, gap", [(Linf(0.1), lambda w: 0.1 * w.abs().sum(1), 1e-6), (L2(0.2), lambda w: 0.2 * w.norm(dim=1), 0.4)]
)
def test_square_on_a_linear_model(threat, worst, gap, device):
    # In L-infinity windows of a pixel find the optimum; in L2 dipoles of 3 by 3 come near it.
    net, x = linear_net(classes=2).to(device), images(low=0.3, high=0.7).to(device)
    y = net(x).argmax(1)
    W = net[1].weight.detach()
    rise = worst(W[1 - y] - W[y])
    expected = margins(net, x, y) + rise
    found = margins(net, stability.square(net, x, y, threat, queries=1500), y)
    standing = expected <= 0
    assert (found <= expected + 1e-9).all() and 0 < standing.sum() < len(x)
    assert ((expected - found)[standing] <= gap * rise[standing]).all()
    assert ((found > 0) | (expected <= gap * rise)).all()


def visited(threat, queries, count=3, shape=(2, 7, 9)):
    """Points that a net is asked for which never falls and likes everything less than the first."""
    seen = []

    def net(x):
        seen.append(x)
        value = torch.full((len(x),), -float(len(seen)), dtype=x.dtype)
        return torch.stack([torch.zeros_like(value), value], 1)

    x = torch.full((count, *shape), 0.5, dtype=torch.float64)
    stability.square(net, x, torch.zeros(count, dtype=torch.int64), threat, queries=queries)
    return torch.stack(seen) - x


def test_a_query_recolours_one_square_window_of_the_best_image():
    deltas = visited(Linf(0.1), 400)
    assert len(deltas) == 400
    torch.testing.assert_close(deltas[0].abs(), torch.full_like(deltas[0], 0.1), rtol=1e-6, atol=0)
    assert torch.equal(deltas[0][:, :, :1].expand_as(deltas[0]), deltas[0]), "stripes at the start"
    assert len(deltas[0][:, :, 0].flatten(0, 1).unique(dim=0)) == 6, "of each image and channel its own"
    corners = set()
    for query, delta in enumerate(deltas[1:], 1):
        halvings = sum(query > halving * 400 / 10_000 for halving in (10, 50, 200, 1000, 2000, 4000, 6000, 8000))
        side = min(7, max(1, round((0.8 / 2**halvings * 63) ** 0.5)))
        for image in range(3):
            changed = (delta[image] - deltas[0][image]).abs() > 1e-9
            if changed.any():
                _, down, across = changed.nonzero().unbind(1)
                assert down.max() - down.min() < side and across.max() - across.min() < side
                if side == 1:
                    corners.add((int(down[0]), int(across[0])))
                colours = delta[image][:, down.min() : down.max() + 1, across.min() : across.max() + 1]
                assert any(len(colours[channel].unique()) == 1 for channel in range(2))
    assert {0, 6} <= {row for row, _ in corners} and {0, 8} <= {column for _, column in corners}, "edges are within reach"


def test_the_mass_of_l2_moves_between_two_windows():
    generator = torch.Generator().manual_seed(0)
    threat = L2(0.7)
    start = torch.stack([black_box._tiles(0.7, generator, (2, 10, 10), torch.float64) for _ in range(5)])
    torch.testing.assert_close(threat.size(start), torch.full((5,), 0.7, dtype=torch.float64))
    tile = start[0, 0, :2, :2]
    assert tile.sum().abs() < 1e-12 and tile.abs().min() > 0, "a hill and a valley"
    drawn = torch.rand((5, 7), generator=generator, dtype=torch.float64)
    start[2] *= 0.3  # has not spent its budget
    moved = black_box._move_mass(3, drawn, start, 0.7)
    torch.testing.assert_close(threat.size(moved), torch.full((5,), 0.7, dtype=torch.float64))
    for before, after, numbers in zip(start, moved, drawn):
        taken, given = ((int(a * 8), int(b * 8)) for a, b in (numbers[:2], numbers[2:4]))
        outside = torch.ones(10, 10, dtype=torch.bool)
        for row, column in (taken, given):
            outside[row : row + 3, column : column + 3] = False
        assert torch.equal(before[:, outside], after[:, outside])
        empty = torch.zeros(10, 10, dtype=torch.bool)
        empty[taken[0] : taken[0] + 3, taken[1] : taken[1] + 3] = True
        empty[given[0] : given[0] + 3, given[1] : given[1] + 3] = False
        assert (after[:, empty] == 0).all() and (after[:, given[0] + 1, given[1] + 1] != 0).all()


def test_hills_are_those_of_the_paper():
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for r in range(1, 4):  # sum over k of 1 / (n + 1 - k)^2, k up to n less the distance from the centre
        for s in range(1, 6):
            expected[r - 1, s - 1] = sum(1 / (3 - k) ** 2 for k in range(2 - max(abs(r - 2), abs(s - 3)) + 1))
    torch.testing.assert_close(black_box._hill(3, 5), expected)
    assert black_box._dipole(5).norm().item() == pytest.approx(1) and (black_box._dipole(5)[:2] > 0).all()
    assert (black_box._dipole(5)[2:] < 0).all() and black_box._dipole(1).item() == -1


def test_an_image_gets_at_most_so_many_queries_and_none_once_it_has_fallen():
    for attack, settings in ((stability.square, {"queries": 70}), (stability.noise, {"draws": 70})):
        counts = torch.zeros(2, dtype=torch.int64)

        def net(x, counts=counts):
            for value in x[:, 0, 0, 0].tolist():
                counts[int(value > 0.5)] += 1
            return torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), 0.8)], 1)

        x = torch.tensor([0.1, 0.9])[:, None, None, None].repeat(1, 1, 2, 2)  # the first is wrong wherever it goes
        attack(net, x, torch.zeros(2, dtype=torch.int64), Linf(0.05), **settings)
        assert counts.tolist() == [1, 70]


@pytest.mark.parametrize("threat", [Linf(0.3), L2(0.3)])
def test_the_edge_is_where_the_ball_ends(threat):
    generator = torch.Generator().manual_seed(0)
    edge = torch.stack([threat.random_edge((3,), generator) for _ in range(2000)])
    torch.testing.assert_close(threat.size(edge), torch.full((2000,), 0.3))
    assert edge.mean(0).abs().max() < 0.03
    if isinstance(threat, Linf):
        assert len(edge.unique(dim=0)) == 8
    else:  # on the sphere in three dimensions each coordinate is uniform
        assert float((edge[:, 0].abs() < 0.15).double().mean()) == pytest.approx(0.5, abs=0.04)


X, Y = images(2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: stability.square(linear_net(), X, Y, Linf(0.1), queries=0), "queries.*0"),
        (lambda: stability.square(linear_net(), X, Y, Linf(0.1), queries=1.5), "queries.*1.5"),
        (lambda: stability.square(linear_net(), X.flatten(1), Y, Linf(0.1)), "height, width"),
        (lambda: stability.square(linear_net(), X, Y, Linf(0.1), share=0), "share"),
        (lambda: stability.square(linear_net(), X, Y, 0.1), "Linf and L2, got 0.1"),
        (lambda: stability.square(linear_net(), X + 1, Y, Linf(0.1)), "lie in"),
        (lambda: stability.square(linear_net(), X, Y + 2, Linf(0.1)), "labels must lie"),
        (lambda: stability.square(lambda x: x.flatten(1) * float("nan"), X, Y, Linf(0.1)), "NaN"),
        (lambda: stability.noise(linear_net(), X, Y, Linf(0.1), draws=0), "draws.*0"),
        (lambda: stability.noise(linear_net(), X, Y, Linf(0.1), where="moon"), "ball, edge"),
        (lambda: stability.noise(linear_net(), X, Y[:1], Linf(0.1)), "labels"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
