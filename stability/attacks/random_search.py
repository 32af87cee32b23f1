"""Attacks that look at logits alone, never at a gradient: noise, and the Square attack."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from stability.attacks.ascent import Attacked, in_parts, look
from stability.attacks.images import check_count, check_images, evaluating, identities, indexed
from stability.attacks.losses import margin
from stability.attacks.threats import L2, Linf, check_threat, confine, shrunk
from stability.errors import InputError
from stability.random import generators, seeds
from stability.types import Images, Indices, Labels, Net, Threat

Draw = Callable[[torch.Generator, torch.Size, torch.dtype], Tensor]
Propose = Callable[[int, Tensor, Tensor], Tensor]
PLACES = ("ball", "edge")
BLOCK = 64  # queries whose random numbers are drawn at once
# The queries after which the share of pixels that Square changes at once is halved, for 10,000 queries in all.
HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)


@indexed
def noise(
    net: Net,
    x: Images,
    y: Labels,
    threat: Linf | L2,
    draws: int = 100,
    where: str = "ball",
    *,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 512,
) -> Images:
    """Random perturbations: what any attack must beat, and what none needs a gradient for.

    Args:
        net, x, y, threat, generator, indices, batch_size: As for `pgd`.
        draws: Perturbations tried for each image.
        where: "ball", uniform in the ball; "edge", uniform on what is furthest out: its corners (`Linf`), its sphere (`L2`).

    Returns:
        Images like x, within the ball and within [0, 1]: of each the first misclassified draw, else that of the highest
        margin.

    Raises:
        ValueError: As for `pgd`, a gradient aside.
    """
    check_count("draws", draws)
    check_threat(threat)
    if where not in PLACES:
        raise InputError(f"where must be one of {', '.join(PLACES)}, got {where!r}")

    def draw(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return (threat.random_start if where == "ball" else threat.random_edge)(shape, generator, dtype)

    return _search(
        net,
        x,
        y,
        threat,
        draws,
        draw,
        lambda *arguments: draw(*arguments)[None],
        lambda query, drawn, delta: drawn,
        generator,
        indices,
        batch_size,
    )


@indexed
def square(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    queries: int = 1000,
    share: float = 0.8,
    *,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 512,
) -> Images:
    """The Square attack: random search that recolours one square window at a time and keeps what raises the margin.

    Args:
        net, x, y, threat, generator, indices, batch_size: As for `pgd`; x (B, channels, height, width).
        queries: Evaluations of each image at most.
        share: Of the pixels, changed at once in the beginning. Halved eight times on the way.

    Returns:
        Images like x, within the ball and within [0, 1]: of each the first misclassified one, else that of the highest
        margin.

    Raises:
        ValueError: As for `pgd`, a gradient aside; images that are not (B, channels, height, width).

    Source: Andriushchenko et al. (2020), ECCV, algorithms 1 to 3.
    """
    x = check_images(x, y)
    check_count("queries", queries)
    if x.dim() != 4:
        raise InputError(f"square needs images (B, channels, height, width), got shape {tuple(x.shape)}")
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], got {share}")
    start, propose, numbers = (_stripes, _recolour, 2) if isinstance(threat, Linf) else (_tiles, _move_mass, 5)
    if not isinstance(threat, Linf | L2):
        raise InputError(f"square knows Linf and L2, got {threat!r}")

    def draw(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.rand((BLOCK, numbers + shape[0]), generator=generator, dtype=dtype)

    def proposal(query: int, drawn: Tensor, delta: Images) -> Images:
        halvings = sum(query * 10_000 > halving * queries for halving in HALVINGS)
        return propose(_side(share / 2**halvings, delta, threat), drawn, delta, threat.epsilon)

    return _search(net, x, y, threat, queries, partial(start, threat.epsilon), draw, proposal, generator, indices, batch_size)


def _search(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    queries: int,
    start: Draw,
    draw: Draw,
    propose: Propose,
    generator: torch.Generator | None,
    indices: Indices | None,
    batch_size: int,
) -> Images:
    """Random search: start(generator, shape, dtype) -> (...) and draw(...) -> (block, ...) belong to one image,
    propose(query, drawn (B, ...), delta (B, ...)) -> new perturbations (B, ...) to all that are left."""
    x = check_images(x, y)
    check_count("batch_size", batch_size)
    indices, (base,) = identities(indices, x), seeds(generator, 1)
    with evaluating(net), torch.inference_mode(False), torch.no_grad():
        found = [
            _part(net, part, threat, queries, start, draw, propose, base)
            for part in in_parts(x, y, threat, indices, batch_size)
        ]
    return torch.cat(found).to(x.dtype)


def _part(
    net: Net, images: Attacked, threat: Threat, queries: int, start: Draw, draw: Draw, propose: Propose, base: int
) -> Images:
    x, safe, alive = images.x, shrunk(threat, images.x), torch.arange(len(images.x), device=images.x.device)
    own = generators(images.indices, base)
    point = confine(x + _each(start, own, x), x, safe)
    best, highest, drawn = point.clone(), x.new_full((len(x),), -torch.inf), x[:, :0]
    for query in range(queries):
        if query:
            at = (query - 1) % (drawn.shape[1] or 1)
            if at == 0:
                drawn = _each(draw, [own[index] for index in alive.tolist()], images.x)
            point = confine(images.x + propose(query, drawn[:, at], best[alive] - images.x), images.x, safe)
        now = look(net, margin, point, images, False)
        better = now.wrong | (now.score > highest[alive])
        best[alive[better]], highest[alive[better]] = now.image[better], now.score[better]
        kept = ~now.wrong
        if not bool(kept.all()):
            alive, images, drawn = alive[kept], images[kept], drawn[kept]
            if not len(alive):
                break
    return best


def _each(draw: Draw, own: list[torch.Generator], x: Images) -> Tensor:
    return torch.stack([draw(generator, x.shape[1:], x.dtype) for generator in own]).to(x.device)


def _side(share: float, delta: Images, threat: Threat) -> int:
    """Side of the window that changes; for L2 at least 3 and odd, so that it has a centre."""
    height, width = delta.shape[2:]
    side = max(1, round((share * height * width) ** 0.5))
    if isinstance(threat, L2):
        side = max(3, side + (side + 1) % 2)
    return min(side, height, width)


def _corner(drawn: Tensor, side: int, delta: Images) -> tuple[Tensor, ...]:
    """First rows and columns (B,) of windows within the image, from two uniform numbers each."""
    free = torch.tensor(delta.shape[2:], device=delta.device) - side + 1
    return (drawn * free).long().clamp_max(free - 1).unbind(1)


def _signs(drawn: Tensor) -> Tensor:
    return torch.where(drawn < 0.5, -1.0, 1.0).to(drawn)


def _stripes(epsilon: float, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Vertical stripes of one pixel, each channel its own."""
    return epsilon * _signs(torch.rand((shape[0], 1, shape[2]), generator=generator, dtype=dtype)).expand(shape)


def _recolour(side: int, drawn: Tensor, delta: Images, epsilon: float) -> Images:
    row, column = _corner(drawn[:, :2], side, delta)
    down, across = (torch.arange(size, device=delta.device) for size in delta.shape[2:])
    inside = _within(down, row, side)[:, None, :, None] & _within(across, column, side)[:, None, None, :]
    return torch.where(inside, epsilon * _signs(drawn[:, 2:])[:, :, None, None], delta)


def _within(places: Tensor, first: Tensor, side: int) -> Tensor:
    return (places >= first[:, None]) & (places < first[:, None] + side)


def _hill(height: int, width: int) -> Tensor:
    """A hill in the middle of a rectangle: at distance d, the larger of the two coordinates', sum 1/j^2 over j > d."""
    n = max(height, width) // 2
    distance = torch.maximum((torch.arange(height) - height // 2).abs()[:, None], (torch.arange(width) - width // 2).abs())
    sums = (1 / torch.arange(n + 1, 0, -1).double() ** 2).cumsum(0)
    return sums.flip(0)[distance.clamp_max(n)] * (distance <= n)


def _dipole(side: int) -> Tensor:
    """A hill beside a valley in a square, of norm 1."""
    upper = _hill(side // 2, side)
    both = torch.cat([upper, -_hill(side - side // 2, side)])
    return both / both.norm()


def _tiles(epsilon: float, generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Five by five dipoles, each of a random sign for each channel and turned at random, of norm epsilon together."""
    channels, height, width = shape
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    drawn = torch.rand((channels + 1, down, across), generator=generator, dtype=dtype)
    dipole = _dipole(side).to(dtype)
    turned = torch.where(drawn[0, :, :, None, None] < 0.5, dipole, dipole.T)
    tiles = _signs(drawn[1:])[..., None, None] * turned  # (channels, down, across, side, side)
    delta, top, left = torch.zeros(shape, dtype=dtype), (height - side * down) // 2, (width - side * across) // 2
    delta[:, top : top + side * down, left : left + side * across] = tiles.transpose(2, 3).reshape(
        channels, side * down, side * across
    )
    return epsilon * delta / delta.norm()


def _move_mass(side: int, drawn: Tensor, delta: Images, epsilon: float) -> Images:
    """Empty one window, and give what it held, and what the budget leaves, to another in the direction of a dipole."""
    tiny = torch.finfo(delta.dtype).tiny
    count, channels = delta.shape[:2]
    every, steps = torch.arange(count, device=delta.device)[:, None, None], torch.arange(side, device=delta.device)
    taken, given = (
        (every, slice(None), row[:, None, None] + steps[:, None], column[:, None, None] + steps)
        for row, column in (_corner(drawn[:, :2], side, delta), _corner(drawn[:, 2:4], side, delta))
    )
    held = torch.zeros_like(delta)
    held[taken] = delta[taken]
    held[given] = delta[given]
    left = (epsilon**2 - delta.flatten(1).square().sum(1)).clamp_min(0) / channels
    budget = (held.flatten(2).square().sum(2) + left[:, None]).sqrt()[:, None, None]  # a window is (B, side, side, channels)
    dipole = _dipole(side).to(delta)
    turned = torch.where(drawn[:, 4, None, None] < 0.5, dipole, dipole.T)
    window = delta[given]
    mixed = turned[..., None] * _signs(drawn[:, 5:])[:, None, None] + window / _norm(window).clamp_min(tiny)
    moved = delta.clone()
    moved[taken] = 0
    moved[given] = mixed / _norm(mixed).clamp_min(tiny) * budget
    return moved


def _norm(window: Tensor) -> Tensor:
    return window.square().sum((1, 2), keepdim=True).sqrt()
