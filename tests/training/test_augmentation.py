"""Crops and mirror images of a batch, against a loop over the images."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from experiments.harness.training.augmentation import LARGEST_ANGLE, _turned, augment


def candidates(image, mirrored):
    """Every image that augmentation may make of one."""
    channels, height, width = image.shape
    pad = height // 8
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    crops = [padded[:, i : i + height, j : j + width] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    return crops + ([crop[:, :, ::-1] for crop in crops] if mirrored else [])


@pytest.mark.parametrize(
    ("dataset", "shape", "count"),
    [("cifar10", (3, 16, 16), 50), ("mnist", (1, 16, 12), 25), ("digits", (1, 8, 8), 9), ("fashion-mnist", (1, 8, 8), 18)],
)
def test_each_image_is_one_of_its_crops_and_every_crop_occurs(dataset, shape, count, device):
    generator = torch.Generator(device).manual_seed(0)
    image = 0.1 + torch.rand(shape, device=device)
    made = augment(image.expand(1000, *shape), dataset, generator)
    valid = candidates(image.cpu().numpy(), dataset in ("cifar10", "fashion-mnist"))
    found = {image.tobytes() for image in made.cpu().numpy()}
    assert found == {np.ascontiguousarray(crop).tobytes() for crop in valid} and len(found) == count


def test_images_are_drawn_independently_and_stay_apart(device):
    images = torch.rand(2, 3, 16, 16, device=device) + torch.tensor([1.0, 5.0], device=device).view(2, 1, 1, 1)
    made = augment(images.repeat(50, 1, 1, 1), "cifar10", torch.Generator(device).manual_seed(1))
    inside = made[:, :, 4:-4, 4:-4]
    assert (inside[::2] < 3).all() and (inside[1::2] > 3).all()
    assert len({image.cpu().numpy().tobytes() for image in made[::2]}) > 20


def test_the_generator_decides():
    images = torch.rand(20, 3, 32, 32)
    first, again, other = (augment(images, "cifar10", torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.is_contiguous() and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 20)])
def test_rotations_are_those_of_scipy(shape, device):
    images = torch.rand(30, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    turned = _turned(images, torch.Generator(device).manual_seed(1)).cpu().numpy()
    draws = torch.rand(30, generator=torch.Generator(device).manual_seed(1), device=device)
    centre = (np.array(shape[1:]) - 1) / 2
    inside = np.s_[3:-3, 3:-3]  # at the edge the two libraries mix in the zeros from outside in ways of their own
    for image, found, angle in zip(images.cpu().numpy(), turned, (LARGEST_ANGLE * (2 * draws - 1)).tolist()):
        matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for channel, result in zip(image, found):
            expected = ndimage.affine_transform(channel, matrix, centre - matrix @ centre, order=1, mode="grid-constant")
            np.testing.assert_allclose(result[inside], expected[inside], atol=2e-5)


def test_rotations_come_on_top_of_crops(device):
    images = torch.ones(400, 1, 16, 16, device=device)
    made = augment(images, "mnist", torch.Generator(device).manual_seed(0), "rotated")
    assert (
        made.shape == images.shape and made.is_contiguous() and ((made > 0.01) & (made < 0.99)).any() and made.max() <= 1.0001
    )
    assert torch.equal(augment(images, "mnist", None, "none"), images)
