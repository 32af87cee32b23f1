"""Checkpoints: files that are written whole or not at all, know when they are damaged, and hold nothing but data.

A file is a torch archive (torch.load(path, weights_only=True) reads it) followed by a mark and the SHA-256 of the archive.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import odenets
from experiments.harness.run import own
from experiments.harness.training.data import SPLIT_SEED
from odenets.errors import InputError

FORMAT = 2  # of the content: raised whenever its meaning changes
_MARK = b"\nodenets sha256 "
# What says which network this is; `build` makes it again from these.
ARCHITECTURE = ("model", "num_classes", "in_channels", "scheme", "substeps")
META = (*ARCHITECTURE, "dataset", "seed", "training", "epochs", "epoch")


class Damaged(InputError):
    """The file is not what was once written."""


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint: at every moment the file at `path` is the one before or the new one, whole and on the disk.

    Args:
        path: Its folder exists.
        content: Dict of tensors, numbers, strings, None, and lists, tuples and dicts of these.

    Raises:
        OSError: It cannot be written, the disk being full say; the file before is as it was.
    """
    write(path, pack(content))


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, its tensors on the CPU; raises what `unpack` does, and OSError where there is none."""
    return unpack(Path(path).read_bytes(), path)


def pack(content: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint, its checksum among them."""
    archive = io.BytesIO()
    torch.save({"format": FORMAT, **content}, archive)
    data = archive.getvalue()
    return data + _MARK + hashlib.sha256(data).digest()


def unpack(data: bytes, path: str | Path) -> dict[str, Any]:
    """What `pack` was given, its tensors on the CPU, after the checksum has been verified; `path` is where it lay.

    Raises:
        Damaged: Not the bytes that were written (a ValueError that names the file).
        ValueError: Written in another format.
    """
    content = torch.load(io.BytesIO(verified(data, path)), map_location="cpu", weights_only=True)
    if content["format"] != FORMAT:
        raise InputError(f"{path} has format {content['format']}, and this version of odenets reads format {FORMAT}")
    return content


def verified(data: bytes, path: str | Path) -> bytes:
    """The archive in the bytes of a checkpoint; `Damaged` where they are not those that were written."""
    archive, mark, digest = data[: -len(_MARK) - 32], data[-len(_MARK) - 32 : -32], data[-32:]
    if mark != _MARK:
        raise Damaged(f"{path} is damaged, or no checkpoint of this version of odenets: it does not end in a checksum")
    if hashlib.sha256(archive).digest() != digest:
        raise Damaged(f"{path} is damaged: its checksum does not match")
    return archive


def write(path: str | Path, data: bytes) -> None:
    """Write the bytes of a checkpoint, see `save`."""
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(Path(path).parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # on a full disk its room is needed
        raise OSError(
            f"cannot save {path} ({error.strerror or error}); what was saved before is intact: make room, and "
            f"--resume goes on from there"
        ) from error


def build(description: Mapping[str, Any]) -> nn.Module:
    """A new network, on the CPU, from a dict that has the keys of `ARCHITECTURE`; ValueError where there is no such model."""
    return odenets.get_model(description["model"]).build(
        num_classes=description["num_classes"],
        in_channels=description["in_channels"],
        scheme=description["scheme"],
        substeps=description["substeps"],
        field=description.get("field", "residual"),
    )


def parts_of(description: Mapping[str, Any]) -> list[str]:
    """The specs of what a network consists of."""
    return [description["model"], description["scheme"], description.get("field", "residual")]


def split_of(meta: Mapping[str, Any] | None) -> int:
    """The seed of the split whose training images a network of ours has seen; that of all where it is none of ours."""
    config: Mapping[str, Any] = meta["config"] if meta else {}
    return meta["seed"] if meta and config.get("splits") == "per-seed" else config.get("split_seed", SPLIT_SEED)


def load_net(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The network that a run has trained.

    Args:
        path: A file among a run's checkpoints/, NAME.pt.
        device: Where the network shall lie.

    Returns:
        (net, meta): the network in eval mode, with the scheme it was trained with; a dict with model, num_classes,
        in_channels, scheme, substeps, field, dataset, seed, training, epochs (those trained), epoch (the one whose weights
        these are), and config, the run's configuration.

    Raises:
        ValueError: The file is damaged, has another format, holds no network, or one of another architecture.
        OSError: It cannot be read.
    """
    return net_of(read(path), path, device)


def net_of(content: dict[str, Any], path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The network in the content of a checkpoint, which lay at `path`; see `load_net`."""
    missing = [key for key in (*META, "config", "state_dict") if key not in content]
    if missing:
        raise InputError(f"{path} holds no trained network ({', '.join(missing)} missing); give a run's checkpoints/NAME.pt")
    weights = content.pop("state_dict")
    own.refuse_changes(content["config"].get("own", {}), parts_of(content), f"{path} was written")
    try:
        net = build(content)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be loaded by this version of odenets: {error}") from None
    difference = _difference(weights, net.state_dict())
    if difference:
        raise InputError(f"{path} holds weights of another architecture than this version's {content['model']}: {difference}")
    net.load_state_dict(weights)
    return net.to(device).eval(), content


def _difference(given: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """The first thing in which two state dicts differ, in words; empty where they fit."""
    for name in [*wanted, *given]:
        if name not in given or name not in wanted:
            return f"{name} is {'missing' if name in wanted else 'not part of it'}"
        if not isinstance(given[name], torch.Tensor):
            return f"{name} is no tensor"
        if given[name].shape != wanted[name].shape:
            return f"{name} has shape {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
    return ""


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; a folder can be opened for that on POSIX only."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
