"""Random numbers from explicit generators: the same on every machine, whatever the device and the batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from stability.errors import InputError
from stability.types import Indices

Vector = Float[Tensor, "unknowns"]


def given_or_new(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one with seed 0 where it is None."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator, such as torch.Generator().manual_seed(1), got {generator!r}")
    return generator


def seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """So many numbers from a generator, by default a new one with seed 0."""
    generator = given_or_new(generator)
    return torch.randint(2**32, (count,), generator=generator, device=generator.device).tolist()


def generators(indices: Indices, base: int) -> list[torch.Generator]:
    """A generator for each image, on the host, so that devices agree; of its identity and `base` alone."""
    # The host's generator takes 32 bits of its seed; an odd factor keeps different images apart.
    return [torch.Generator().manual_seed((base + 0x9E3779B1 * index) % 2**32) for index in indices.tolist()]


def direction(n: int, seed: int) -> Vector:
    """(n,) random unit vector, float64 on the host, the same on every machine and for every batch."""
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm()
