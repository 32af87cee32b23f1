"""Random crops, mirror images and rotations of a whole batch on its device, one draw for each image, no loop over images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

AUGMENTATIONS = ("none", "standard", "rotated")
LARGEST_ANGLE = math.radians(15)
MIRRORED = ("fashion-mnist", "cifar10", "cifar100")  # what is still what it was in a mirror; digits are not
DEFAULT = {"cifar10": "standard", "cifar100": "standard"}


def augment(images: Tensor, dataset: str, generator: torch.Generator, kind: str = "standard") -> Tensor:
    """Pad with zeros by an eighth of the height (4 of 32 pixels), crop to the size at a random place; mirror half of them.

    "rotated": and turn each by up to 15 degrees either way about its centre, bilinear, zeros from outside.

    Args:
        images: (B, C, H, W).
        dataset: Its name; images are mirrored where that keeps their class.
        generator: Two numbers for each image, one more with mirroring and one with rotations; on its own device.
        kind: Of `AUGMENTATIONS`; "none" leaves the images as they are.

    Source: He et al. (2016), CVPR, section 4.2; the rotations are those of Li, He, Lin (2020), ICML, the authors' code.
    """
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    padding = height // 8

    def draw(bound: int) -> Tensor:
        return torch.randint(bound, (batch, 1), generator=generator, device=generator.device).to(images.device)

    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    if dataset in MIRRORED:
        columns = torch.where(draw(2) == 1, columns.flip(0), columns)
    rows, columns = rows + draw(2 * padding + 1), columns + draw(2 * padding + 1)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    cropped = padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
    return _turned(cropped, generator) if kind == "rotated" else cropped


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    angles = LARGEST_ANGLE * (2 * torch.rand(len(images), generator=generator, device=generator.device).to(images.device) - 1)
    cos, sin, zero, (height, width) = angles.cos(), angles.sin(), torch.zeros_like(angles), images.shape[2:]
    # The grid runs from -1 to 1 along either axis, whatever the lengths: in units of pixels it is a rotation.
    turn = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
