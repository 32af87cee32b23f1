"""Checkpoints of runs as folders that others can read, and back: the same weights, and all that is known of them."""

from pathlib import Path
from typing import Any

import odenets
from experiments.harness.run import checkpoints
from odenets.errors import InputError
from odenets.nets import hub


def share(checkpoint: str | Path, folder: str | Path) -> None:
    """Write the network of a checkpoint as a folder with config.json and model.safetensors.

    Raises:
        InputError: The checkpoint is damaged, or of a model whose code does not travel.
    """
    net, meta = checkpoints.load_net(checkpoint)
    if not isinstance(net, odenets.ODEResNet):
        raise InputError(f"{checkpoint} is a {meta['model']}, whose code is your own; an ODEResNet can be shared")
    net.save_pretrained(folder, about={key: value for key, value in meta.items() if key != "format"})


def shared_net(folder: str | Path) -> tuple[odenets.ODEResNet, dict[str, Any] | None]:
    """The network of such a folder in eval mode, and what `checkpoints.load_net` tells; None where no run trained it."""
    net = odenets.ODEResNet.from_pretrained(folder)
    about = hub.read(folder)[0].get("about") or {}
    return net, about if {*checkpoints.META, "config"} <= about.keys() else None


def adopt(folder: str | Path, checkpoint: str | Path) -> None:
    """Write a folder that `share` wrote as a checkpoint.

    Raises:
        InputError: No run of ours trained that network; OSError where it cannot be written.
    """
    net, about = shared_net(folder)
    if about is None:
        raise InputError(f"{folder} does not say which run trained its network; evaluate.py takes the folder as it is")
    checkpoints.save(checkpoint, {**about, "state_dict": net.state_dict()})
