"""Networks as others share them: a folder with config.json and model.safetensors, on a disk or on the Hugging Face hub.

The configuration is JSON and the weights are numbers: nothing in such a folder is executed when it is read. Needs the extra
hub: safetensors, and huggingface_hub for what does not lie on this disk.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from odenets.errors import InputError, MissingExtra, sentence

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1  # of the configuration: raised whenever its meaning changes
EXTRA = 'pip install "odenets[hub]"'


def write(folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a folder, made where missing; what else lies there stays.

    Raises:
        MissingExtra: safetensors is not installed.
        OSError: It cannot be written.
    """
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise MissingExtra(f"sharing networks needs the package safetensors: {EXTRA}") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}, folder / WEIGHTS)
    text = json.dumps({"library": "odenets", "format": FORMAT, **config}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read(name: str | Path, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights, on the CPU.

    Args:
        name: A folder, or USER/NAME on the Hugging Face hub, which is fetched where it is not in its cache.
        revision: Branch, tag or commit there.

    Raises:
        MissingExtra: A package is not installed.
        InputError: Nothing there, or not what `write` wrote.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtra(f"reading shared networks needs the package safetensors: {EXTRA}") from None
    config, weights = (_file(str(name), part, revision) for part in (CONFIG, WEIGHTS))
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        if found.get("library") != "odenets" or found.get("format") != FORMAT:
            raise InputError(f"{name} holds no network of odenets in format {FORMAT}; its {CONFIG} says otherwise")
        return found, load_file(weights)
    except (ValueError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is damaged: {sentence(error)}") from None


def is_shared(folder: Path) -> bool:
    """Whether a folder is one that `write` wrote."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _file(name: str, part: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        if not (Path(name) / part).is_file():
            raise InputError(f"{name} holds no {part}; give a folder that save_pretrained wrote")
        return Path(name) / part
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtra(f"there is no folder {name}, and the Hugging Face hub needs its package: {EXTRA}") from None
    try:
        return Path(hf_hub_download(name, part, revision=revision))
    except (OSError, ValueError) as error:  # what the hub raises derives from these
        raise InputError(f"there is no folder {name}, and the Hugging Face hub gave none: {sentence(error)}") from None
