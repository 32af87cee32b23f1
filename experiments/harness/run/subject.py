"""What a script is asked to look at: a network that one of our runs trained, or any module that a user brings."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from experiments.harness.run import checkpoints
from experiments.harness.run.failures import sentence
from odenets.errors import InputError

FORMS = "a checkpoint of a run, the folder of a run, package.module:callable or path/to/file.py:callable"


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
        text: A file or folder of a run, or an import path MODULE:NAME or FILE.py:NAME. NAME is a module, or something that
            returns one when called without arguments; its weights, and eval mode, are its own business.
        device: Where the networks shall lie.

    Raises:
        ValueError: Nothing there, a damaged checkpoint, code that raises, no module, BatchNorm in training mode.
        OSError: A file cannot be read.
    """
    path = Path(text)
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
    place, _, name = text.rpartition(":")
    try:
        with _importable(Path(place).parent if place.endswith(".py") else Path()):
            found = getattr(_from_file(place) if place.endswith(".py") else importlib.import_module(place), name)
            net = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:  # the user's code may raise whatever it likes
        raise InputError(f"{text} cannot be had: {sentence(error)}") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{text} gave a {type(net).__name__}; it must be, or return, a torch.nn.Module")
    for part, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"{text}: {part or 'the module'} is a {type(module).__name__} in training mode, in which images "
                f"depend on their neighbours; return net.eval()"
            )
    return Subject(text, net.to(device).eval(), text)


def _from_file(place: str) -> ModuleType:
    if not Path(place).is_file():
        raise FileNotFoundError(f"no file {place}")
    # Under a name that is nobody else's; known by it meanwhile and afterwards, as dataclasses and pickle want it.
    spec = importlib.util.spec_from_file_location(f"evaluated_{Path(place).stem}", place)
    assert spec and spec.loader  # of a file that is there
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within the context Python imports from a folder too, as it does beside a script that it runs."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
