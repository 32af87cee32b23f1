"""Fields with schemes, for nets that are certified: at about equal parameters, for about equal seconds."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

import odenets
import stability
from experiments.harness.run.certified import CertifyConfig, Pair
from experiments.harness.training import loop
from experiments.harness.training.data import Data
from experiments.harness.training.settings import TrainingSettings
from odenets.errors import InputError
from odenets.own import find_own, is_own
from stability.attacks.threats import THREATS

PROBED = 4  # batches that a training is timed by, after one that is not


def pairs_of(
    config: CertifyConfig, model: str, fields: Sequence[str], schemes: Sequence[str], images: Data, parameters: int | None
) -> Iterator[Pair]:
    """Every field with every scheme; epochs by timing; those without a proof, with the reason.

    Args:
        config: With the settings and the seconds of a training.
        model: Its spec; size and width are chosen where it takes them and none were given.
        fields, schemes: Specs.
        images: What they are trained on.
        parameters: Of each net, about; None: those of the first field at the model's own width.
    """
    channels, size = images.train.images.shape[1:3]
    sized = {width: _with(model, size=size, width=width) for width in range(4 * channels, 40 * channels + 65, 4)}
    for field in fields:
        # By midpoint: a step that has no limit to be brought to, so that nothing has to be proven for a count.
        nets = {
            spec: odenets.get_model(spec).build(images.classes, channels, "implicit_midpoint", 1, field)
            for spec in dict.fromkeys(sized.values())
        }
        counts = {spec: sum(parameter.numel() for parameter in net.parameters()) for spec, net in nets.items()}
        target = parameters = counts[sized[max(16, 4 * channels)]] if parameters is None else parameters
        chosen = min(counts, key=lambda spec: abs(counts[spec] - target))
        for scheme in schemes:
            pair = Pair(field=field, scheme=scheme, model=chosen, parameters=counts[chosen])
            torch.manual_seed(0)
            net = odenets.get_model(chosen).build(images.classes, channels, scheme, 1, field)
            try:
                stability.certify(net, images.test.images[:1], norm=THREATS[config.norm], tau=config.tau)
            except InputError as error:
                yield replace(pair, refused=str(error))
                continue
            assert config.settings and config.seconds
            seconds = _epoch_seconds(net.to(config.device), images, config.settings)
            yield replace(pair, epochs=1 if config.smoke else max(1, round(config.seconds / seconds)))


def _with(spec: str, **settings: int) -> str:
    """A model's spec with those settings that it takes and that it was not given."""
    name, _, given = spec.partition("(")
    given, takes = given.removesuffix(")"), find_own(spec, "model").takes if is_own(spec) else {}
    further = [f"{key}={value}" for key, value in settings.items() if key in takes and not re.search(rf"\b{key}\s*=", given)]
    arguments = ",".join(filter(None, [given, *further]))
    return f"{name}({arguments})" if arguments else name


def _epoch_seconds(net: nn.Module, images: Data, settings: TrainingSettings) -> float:
    """CPU seconds of an epoch, from some batches; on an accelerator those of the clock."""
    clock = time.perf_counter if images.train.images.device.type == "cuda" else time.process_time
    spent = []
    for batches in (1, PROBED):
        few = replace(images, train=images.train.first(batches * settings.batch_size), held_out=images.held_out.first(8))
        start = clock()
        loop.train(net, few, settings, 0)
        spent.append((clock() - start, max(1, len(few.train) // settings.batch_size)))
    seconds, batches = spent[1]
    return seconds / batches * max(1, len(images.train) // settings.batch_size)
