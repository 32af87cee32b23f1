"""The reference AutoAttack behind the signature of our attacks; it needs the package pyautoattack (extra [autoattack])."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stability.attacks.images import attacking, check_count, check_images, check_logits
from stability.attacks.threats import L2, Linf
from stability.errors import InputError, MissingExtra
from stability.random import given_or_new
from stability.types import Images, Indices, Labels, Net, Threat

VERSIONS = ("standard", "plus", "rand", "custom")


def autoattack(
    net: Net,
    x: Images,
    y: Labels,
    threat: Threat,
    version: str = "standard",
    *,
    attacks: Iterable[str] | None = None,
    configure: Callable[[Any], object] | None = None,
    generator: torch.Generator | None = None,
    indices: Indices | None = None,
    batch_size: int = 250,
) -> Images:
    """AutoAttack as its authors wrote it, an attack for `worst_case`: `functools.partial(autoattack, threat=threat)`.

    Its noise depends on the batch, and what it stops at is its own; `worst_case` with it counts what calling it would.

    Args:
        net, x, y, threat: As for `pgd`; x (B, channels, height, width), float32.
        version: "standard", "plus", "rand", or "custom" with `attacks`.
        attacks: For "custom", names of the package: "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square".
        configure: Is given the package's AutoAttack object before it runs, to change what it exposes, such as
            `square.n_queries`.
        generator: Draws one number, the seed; by default a new generator with seed 0. Global seeds are left as they were.
        indices: As for `pgd`, and of no use here.
        batch_size: Images attacked at once.

    Returns:
        Images like x.

    Raises:
        ValueError: As for `pgd`; the package is not installed; images it cannot take; fewer than 4 classes where an attack
            has targets.

    Source: Croce & Hein (2020), Reliable evaluation of adversarial robustness; the package of that name.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError:
        raise MissingExtra('AutoAttack needs the package pyautoattack: pip install "odenets[autoattack]"') from None
    x = check_images(x, y)
    check_count("batch_size", batch_size)
    if x.dim() != 4 or x.dtype != torch.float32:
        raise InputError(
            f"AutoAttack takes float32 images (B, channels, height, width), got {x.dtype} {tuple(x.shape)}; of "
            "fewer bits it would find images outside the ball: there apgd and square are its attacks"
        )
    if not isinstance(threat, Linf | L2):
        raise InputError(f"AutoAttack is given Linf or L2, got {threat!r}")
    if version not in VERSIONS or (version == "custom") != (attacks is not None):
        raise InputError(
            f"version must be one of {', '.join(VERSIONS)}, and custom goes with attacks; got {version!r} with "
            f"attacks {attacks}"
        )
    generator = given_or_new(generator)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    devices = [x.device] if x.device.type == "cuda" else []
    with attacking(net), torch.random.fork_rng(devices), _undisturbed():
        x, y = x.detach().clone(), y.clone()
        with torch.no_grad():
            logits = net(x[:1])
        check_logits(logits, y[:1])
        reference = AutoAttack(
            net,
            norm=type(threat).__name__,
            eps=threat.epsilon,
            version=version,
            seed=seed,
            device=x.device,
            attacks=None if attacks is None else list(attacks),
        )
        _aim(reference, logits.shape[1])
        if configure is not None:
            configure(reference)
        return reference.run_standard_evaluation(x, y, batch_size=batch_size)[0].detach()


def _aim(reference: Any, classes: int) -> None:
    """No more targets than wrong classes: the package would index beyond them."""
    if classes < 4 and {"apgd-t", "fab-t"} & {*reference.attacks_to_run}:
        raise InputError(
            f"AutoAttack's targeted attacks need 4 classes, the logits have {classes}; choose "
            'version="custom" with attacks such as apgd-ce, square'
        )
    for attack in (reference.apgd_targeted, reference.fab):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the tracing function, which the package sets to None, and drop its warning of dynamic defences.

    Any forward pass that differentiates, as that of ie_skip does, sets that warning off, and from then on any other does
    until the process ends. The audit tells what it wants to know.
    """

    def relevant(record: logging.LogRecord) -> bool:
        return "dynamic defense" not in record.getMessage()

    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    logger.addFilter(relevant)
    try:
        yield
    finally:
        logger.removeFilter(relevant)
        sys.settrace(trace)
