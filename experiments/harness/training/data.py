"""Images in [0, 1] as tensors, split into train, held-out and test once and for all."""

import gzip
import hashlib
import pickle
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from experiments.harness.training import brought
from odenets.errors import InputError
from odenets.own import find_own, is_own

# name: (torchvision class, number of classes); digits is scikit-learn's and needs no file.
REMOTE = {
    "mnist": (datasets.MNIST, 10),
    "fashion-mnist": (datasets.FashionMNIST, 10),
    "cifar10": (datasets.CIFAR10, 10),
    "cifar100": (datasets.CIFAR100, 100),
}
DATASETS = ("digits", *REMOTE)
SPLIT_SEED = 20  # of the split that every run, scheme and seed sees, unless --splits says otherwise
RESPLIT = ("digits",)  # small enough to be split anew: the others come with test images of their own
SPLITS = ("fixed", "per-seed")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) float32 in [0, 1] and labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as bytes where every value is a whole number of 1/255 or 1/16, as those of our data sets are: a quarter.

        What comes of it lies on the CPU.
        """
        images, labels = self.images.cpu(), self.labels.cpu().numpy()
        for scale in (255, 16):
            packed = (images * scale).round().to(torch.uint8)
            if torch.equal(packed.float() / scale, images):
                return _unpacked, (packed.numpy(), labels, scale)
        return _unpacked, (images.numpy(), labels, None)

    def first(self, count: int | None) -> "Split":
        """The first `count` images (all where there are fewer)."""
        return Split(self.images[:count], self.labels[:count])

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


def _unpacked(images: np.ndarray, labels: np.ndarray, scale: int | None) -> Split:
    # Copied: what Ray hands out cannot be written to.
    found = torch.from_numpy(images.copy())
    return Split(found.float() / scale if scale else found, torch.from_numpy(labels.copy()))


@dataclass(frozen=True)
class Data:
    """A data set: training images, held-out training images for every choice, test images for the result alone.

    digest: SHA-256 of images and labels where they are a user's own. note: what the user should know of them.
    """

    name: str
    classes: int
    train: Split
    held_out: Split
    test: Split
    digest: str = ""
    note: str = ""

    def to(self, device: torch.device) -> "Data":
        """The same on another device."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "held_out", "test")}
        return replace(self, **parts)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]


def load(
    name: str,
    folder: str | Path = "",
    download: bool = True,
    train_limit: int | None = None,
    test_limit: int | None = None,
    split: int = SPLIT_SEED,
    image_size: int | None = None,
) -> Data:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`, or one of a user's own: see `brought.read`, and for image_size too.
        folder: Where torchvision's files lie or shall lie; not used for digits.
        download: Fetch missing files where a network is there.
        train_limit, test_limit: Keep so many images only (of a fixed shuffle), None for all.
        split: Seed of the shuffle that cuts the images of `RESPLIT`, and a user's own, into train, held-out and test.

    Raises:
        ValueError: Unknown name; missing, truncated or corrupt files, with what to do.
    """
    name, digest, note = named(name), "", ""
    if split != SPLIT_SEED and not can_be_resplit(name):
        raise InputError(f"{name} comes with test images of its own; only {', '.join(RESPLIT)} can be split anew")
    if name not in DATASETS:
        images, labels, known = brought.read(name, image_size)
        digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        test, rest = _cut(_shuffled(Split(images, labels), split), len(images) // 4)
        classes, held_out = len(known), max(1, len(rest) // 10)
        if known != [str(label) for label in range(classes)]:
            note = f"{name}: the classes {_few(known)} are counted as 0 to {classes - 1}"
    elif name == "digits":
        bunch = load_digits()
        images = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]
        everything = _shuffled(Split(images, torch.tensor(bunch.target)), split)
        test, rest, classes, held_out = _cut(everything, 450)[0], _cut(everything, 450)[1], 10, 147
    else:
        rest, test = (_read(name, folder, train, download) for train in (True, False))
        rest, test, classes, held_out = _shuffled(rest, SPLIT_SEED), _shuffled(test, SPLIT_SEED), REMOTE[name][1], 5000
    held, train = _cut(rest, held_out)
    return Data(name, classes, train.first(train_limit), held.first(train_limit), test.first(test_limit), digest, note)


def named(name: str, what: str = "data set") -> str:
    """A data set's name as records have it; InputError where there is none of that name."""
    if name in DATASETS:
        return name
    if not brought.is_brought(name):
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(DATASETS)}, or give {brought.FORMS}")
    if is_own(name):
        find_own(name, "data set")  # what cannot be had is told before its code is looked for
        return name
    return Path(name).as_posix()


def can_be_resplit(name: str) -> bool:
    """Whether a data set has no test images of its own."""
    return name in RESPLIT or name not in DATASETS


def _few(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])


def _cut(split: Split, count: int) -> tuple[Split, Split]:
    head = split.first(count)
    return head, Split(split.images[count:], split.labels[count:])


def _shuffled(split: Split, seed: int) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return Split(split.images[order], split.labels[order])


def _read(name: str, folder: str | Path, train: bool, download: bool) -> Split:
    try:
        dataset = REMOTE[name][0](str(folder), train=train, download=False)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if _present(name, folder):
            raise InputError(
                f"the {name} files in {folder} are damaged ({_first_line(error)}); remove them and download again"
            ) from None
        if not download:
            raise InputError(
                f"no {name} files in {folder} and --no-download given; put torchvision's files there "
                f"(--data-dir), or use --dataset digits, which needs none"
            ) from None
        dataset = _download(name, folder, train)
    images = torch.as_tensor(np.asarray(dataset.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    if len(images) != len(labels):
        raise InputError(f"the {name} files in {folder} are damaged: {len(images)} images but {len(labels)} labels")
    return Split(images.contiguous().float() / 255, labels)


def _download(name: str, folder: str | Path, train: bool) -> Any:
    try:
        return REMOTE[name][0](str(folder), train=train, download=True)
    except (RuntimeError, OSError, EOFError, ValueError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise InputError(
            f"no {name} files in {folder}, and the download failed ({_first_line(error)}); use --data-dir with "
            f"torchvision's files, or --dataset digits, which needs none"
        ) from None


def _present(name: str, folder: str | Path) -> bool:
    """Whether files of the data set lie there, whatever their state."""
    cls = REMOTE[name][0]
    place = Path(folder, getattr(cls, "base_folder", ""), "" if hasattr(cls, "base_folder") else f"{cls.__name__}/raw")
    return place.is_dir() and any(place.iterdir())


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
