import gzip

import numpy as np
import pytest
import torch

from experiments.harness.training import data


def test_digits_need_no_file_and_split_the_same_way_every_time():
    first, second = data.load("digits", None), data.load("digits", None)
    assert [len(part) for part in (first.train, first.held_out, first.test)] == [1200, 147, 450] and first.channels == 1
    assert torch.equal(first.test.images, second.test.images) and first.classes == 10
    for part in (first.train, first.held_out, first.test):
        assert part.images.dtype == torch.float32 and part.images.min() >= 0 and part.images.max() <= 1
        assert set(part.labels.tolist()) == set(range(10))


def test_splits_are_disjoint():
    digits = data.load("digits", None)
    seen = [{image.numpy().tobytes() for image in part.images} for part in (digits.train, digits.held_out, digits.test)]
    assert not seen[0] & seen[2] and not seen[0] & seen[1] and not seen[1] & seen[2]


def _write_mnist(folder, count=5200, cut=0):
    """Files in torchvision's layout with random pixels."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, number in (("train", count), ("t10k", 30)):
        images = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, number, dtype=np.uint8)
        header = np.array([2051, number, 28, 28], dtype=">i4").tobytes()
        content = header + images.tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(content[: len(content) - cut])
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([2049, number], dtype=">i4").tobytes() + labels.tobytes())


def test_files_in_torchvisions_layout(tmp_path):
    _write_mnist(tmp_path)
    mnist = data.load("mnist", tmp_path, download=False, train_limit=50, test_limit=20)
    assert [len(part) for part in (mnist.train, mnist.held_out, mnist.test)] == [50, 50, 20]
    assert mnist.train.images.shape == (50, 1, 28, 28) and 0.9 < mnist.train.images.max() <= 1


def test_truncated_files_are_called_damaged(tmp_path):
    _write_mnist(tmp_path, cut=1000)
    with pytest.raises(ValueError, match="mnist files in .* are damaged"):
        data.load("mnist", tmp_path, download=False)


def test_truncated_archives_are_called_damaged(tmp_path):
    _write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    for path in list(raw.iterdir()):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:100])
        path.unlink()
    with pytest.raises(ValueError, match="damaged|no mnist files"):
        data.load("mnist", tmp_path, download=False)


@pytest.mark.parametrize("name", data.REMOTE)
def test_missing_files_without_download_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"no {name} files in .*--no-download.*digits"):
        data.load(name, tmp_path / "empty", download=False)


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown data set 'x'; choose from digits, mnist"):
        data.load("x", None)
