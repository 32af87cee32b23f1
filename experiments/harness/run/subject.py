"""What a script is asked to look at: a network that one of our runs trained, or any module that a user brings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness.run import checkpoints, sharing
from experiments.harness.run.checkpoints import split_of
from experiments.harness.training import data
from odenets.errors import InputError, sentence
from odenets.nets import hub
from odenets.own import Own, find_own

FORMS = "a checkpoint of a run, the folder of a run, one that was shared, package.module:callable or path/to/file.py:callable"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in eval mode, and what is known of it.

    name: For tables: the checkpoint's file name without its ending, or the import path. text: What it was asked for by.
    meta: What `checkpoints.load_net` tells of a network of ours (dataset, model, scheme, substeps, seed, training, ...);
    None of a user's own.
    """

    name: str
    net: nn.Module
    text: str
    meta: dict | None = None


def load_subjects(text: str, device: str | torch.device = "cpu") -> list[Subject]:
    """Every network that a text names: one, or all checkpoints of a run's folder in the order of their names.

    Args:
        text: A file or folder of a run, a folder that save_pretrained wrote, or an import path MODULE:NAME or FILE.py:NAME.
            NAME is a module, or something that returns one when called, with what stands in parentheses; its weights, and eval
            mode, are its own business.
        device: Where the networks shall lie.

    Raises:
        ValueError: Nothing there, a damaged checkpoint, code that raises, no module, BatchNorm in training mode.
        OSError: A file cannot be read.
    """
    path = Path(text)
    if path.is_dir() and hub.is_shared(path):
        net, meta = sharing.shared_net(path)
        return [Subject(path.name, net.to(device), text, meta)]
    if path.is_dir():
        files = sorted(path.glob("checkpoints/*.pt"))
        if not files:
            raise InputError(f"{text} holds no finished checkpoint (checkpoints/*.pt); give {FORMS}")
        return [_of_run(file, device) for file in files]
    if path.is_file():
        if path.suffix == ".py":
            raise InputError(f"{text} is a Python file; name what returns the network, as in {text}:NAME")
        return [_of_run(path, device)]
    if ":" not in text or path.suffix == ".pt":
        raise InputError(f"there is no {text!r}; give {FORMS}")
    return [_imported(text, device)]


def load_subject(text: str, device: str | torch.device = "cpu") -> Subject:
    """The one network that a text names; see `load_subjects`. ValueError where a folder holds several."""
    subjects = load_subjects(text, device)
    if len(subjects) > 1:
        raise InputError(f"{text} holds {len(subjects)} checkpoints; give one of them, such as {subjects[0].text}")
    return subjects[0]


def images_for(
    subjects: Sequence[Subject],
    dataset: str,
    folder: str,
    download: bool,
    limits: tuple[int | None, int | None],
    size: int | None,
) -> tuple[data.Data, int | None]:
    """The images of a data set that networks are looked at with, in the split and size that they were trained on.

    Args:
        subjects: The networks. dataset, folder, download: See `data.load`. limits: of training and test images.
        size: In place of theirs, where they are none of ours.

    Returns:
        (images, size).

    Raises:
        InputError: They were trained on several splits, or on images that have changed since.
    """
    split, *others = {split_of(subject.meta) for subject in subjects} or {data.SPLIT_SEED}
    if others:
        raise InputError(f"these {len(subjects)} networks have splits of their own; give the checkpoints of one seed")
    known: dict[str, Any] = next((subject.meta["config"] for subject in subjects if subject.meta), {})
    size = size or known.get("image_size")
    found = data.load(dataset, folder, download, *limits, split, size)
    if known.get("own", {}).get(dataset, found.digest) != found.digest:
        raise InputError(f"{dataset} has changed since {subjects[0].text} was trained, which may have seen these test images")
    return found, size


def logits_of(net: nn.Module, x: Tensor, name: str) -> Tensor:
    """The network's answer to images; InputError, with the user's line, where it cannot take them."""
    try:
        with torch.no_grad():
            return net(x)
    except Exception as error:  # the user's code may raise whatever it likes
        raise InputError(f"{name} cannot take images of shape {tuple(x.shape[1:])}: {sentence(error)}") from error


def _of_run(path: Path, device: str | torch.device) -> Subject:
    net, meta = checkpoints.load_net(path, device)
    return Subject(path.stem, net, str(path), meta)


def _imported(text: str, device: str | torch.device) -> Subject:
    part = find_own(text, "network")
    net = part.found if isinstance(part.found, nn.Module) else _called(part)
    if not isinstance(net, nn.Module):
        raise InputError(f"{text} gave a {type(net).__name__}; it must be, or return, a torch.nn.Module")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"{text}: {name or 'the module'} is a {type(module).__name__} in training mode, in which images "
                f"depend on their neighbours; return net.eval()"
            )
    return Subject(text, net.to(device).eval(), text)


def _called(part: Own) -> object:
    return part.call(**part.settings(part.declared()))
