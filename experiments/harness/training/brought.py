"""Data sets of a user's own: a folder of class folders, an .npz with images and labels, FILE.py:NAME that returns both."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import functional

from odenets.errors import InputError, sentence
from odenets.own import find_own, is_own

FORMS = "a folder of class folders, an .npz with images and labels, or FILE.py:NAME that returns both"
IMAGE_SIZE = "bring images of your own to NxN: the shorter side is resized, the centre cut out"
FEWEST = 8  # images that can be split
GREY, COLOUR = (
    ("1", "L"),
    ("LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"),
)  # modes of images; others have no scale that is known
PARTS = {"train", "test", "val", "valid", "validation"}


def is_brought(name: str) -> bool:
    """Whether a name is that of a data set of a user's own."""
    return is_own(name) or name.endswith(".npz") or Path(name).is_dir()


def read(name: str, image_size: int | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """The images of a data set of a user's own, in the order in which they lie there.

    Args:
        name: What `is_brought` knows. A folder of class folders is read as torchvision's `ImageFolder` does.
        image_size: Shorter sides are resized to it, and the centre is cut out; None: as they are.

    Returns:
        (images, labels, classes): (N, C, H, W) float32 in [0, 1], grey ones with one channel; (N,) int64 from 0 to k - 1;
        the k classes as they were named.

    Raises:
        InputError: Nothing there, one class only, images of several sizes or of a kind that has no known scale.
    """
    if is_own(name):
        part = find_own(name, "data set")
        found = part.call(**part.settings(part.declared()))
        if not isinstance(found, Sequence) or len(found) != 2:
            raise InputError(f"{name} gave a {type(found).__name__}; a data set is a pair (images, labels)")
        images, labels = found
    else:
        images, labels = _of_file(name) if name.endswith(".npz") else _of_folder(name, image_size)
    images, labels = _stacked(name, images, image_size), np.asarray(labels)
    if labels.shape != (len(images),):
        raise InputError(f"{name} has {len(images)} images and labels of shape {labels.shape}; give a label for each image")
    if labels.dtype.kind not in "biuUS" and not (labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels))):
        raise InputError(f"{name} has labels of {labels.dtype}; give whole numbers or names of classes")
    classes, labels = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{name} has one class only ({', '.join(map(str, classes))}); a classifier needs two at least")
    if len(images) < FEWEST:
        raise InputError(f"{name} has {len(images)} images; {FEWEST} at least can be split into training and test images")
    return images, torch.as_tensor(labels, dtype=torch.int64), [str(value) for value in classes]


def _of_file(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(name, allow_pickle=False) as file:
            lacking = [key for key in ("images", "labels") if key not in file.files]
            if lacking:
                raise InputError(f"{name} has no array {', '.join(lacking)}, it has {', '.join(file.files) or 'none'}")
            return file["images"], file["labels"]
    except FileNotFoundError:
        raise InputError(f"no file {name}; give {FORMS}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be read as an .npz of plain arrays: {sentence(error)}") from None


def _of_folder(name: str, size: int | None) -> tuple[list[np.ndarray], np.ndarray]:
    try:
        found = datasets.ImageFolder(name)
    except FileNotFoundError:
        raise InputError(f"{name} has no folders with images, one for each class, or one of them is empty") from None
    if {entry.lower() for entry in found.classes} <= PARTS:
        raise InputError(f"{name} holds {', '.join(found.classes)}, which look like parts of a data set: give one of them")
    opened = [_opened(path) for path, _ in found.samples]
    grey = all(image.mode in GREY for image in opened)
    images = [np.asarray(_sized(image.convert("L" if grey else "RGB"), size)) for image in opened]
    shapes = {image.shape[:2]: path for image, (path, _) in zip(images, found.samples)}
    if len(shapes) > 1:
        (one, first), (other, second), *_ = shapes.items()
        raise InputError(
            f"{name} has images of {len(shapes)} sizes, such as {_size(one)} ({first}) and {_size(other)} ({second}); "
            "--image-size N brings all to NxN"
        )
    return images, np.array([found.classes[label] for _, label in found.samples])


def _opened(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {sentence(error)}") from None
    if image.mode not in (*GREY, *COLOUR):
        raise InputError(
            f"{path} has pixels of mode {image.mode}, of which the white is unknown; save it with 8 bits a channel"
        )
    return image


def _sized(image: Any, size: int | None) -> Any:
    """An image, or (..., H, W) of them, with its shorter side resized and its centre cut out."""
    return image if size is None else functional.center_crop(functional.resize(image, size, antialias=True), [size, size])


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _stacked(name: str, images: Any, size: int | None) -> Tensor:
    """(N, C, H, W) float32 in [0, 1] of an array, a tensor, or a list of them."""
    if isinstance(images, (list, tuple)):
        tensors = [image if isinstance(image, Tensor) else torch.as_tensor(np.array(image)) for image in images]
        parts = [_stacked(name, tensor[None], size) for tensor in tensors]
        shapes = {part.shape for part in parts}
        if len(shapes) > 1:
            (one, other, *_) = (tuple(shape[1:]) for shape in shapes)
            raise InputError(
                f"{name} has images of {len(shapes)} shapes, such as {one} and {other}; --image-size N brings all to NxN"
            )
        return torch.cat(parts) if parts else torch.zeros(0, 1, 1, 1)
    try:
        found = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} has images that are no array: {sentence(error)}") from None
    if found.dim() == 4 and found.shape[1] not in (1, 3) and found.shape[3] in (1, 3):
        found = found.permute(0, 3, 1, 2)
    found = found[:, None] if found.dim() == 3 else found
    if found.dim() != 4:
        raise InputError(f"{name} has images of shape {tuple(found.shape)}; give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if found.dtype == torch.uint8:
        found = found.float() / 255
    if not found.is_floating_point() or not bool(((found >= 0) & (found <= 1)).all()):
        raise InputError(f"{name} has images of {found.dtype}; give uint8, or floating-point numbers in [0, 1]")
    return _sized(found.float().contiguous(), size).clamp(0, 1)
