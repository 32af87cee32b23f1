"""One pass along a network of ODE stages: the state at every block, and what acts on it there."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import odenets
from odenets.nets.guard import guarded
from odenets.nets.stage import ODEStage
from odenets.schemes import Scheme
from odenets.types import Field
from stability.errors import InputError
from stability.linear.jacobian import check_state
from stability.types import Map, State

States = Float[Tensor, "times batch ..."]  # of a stage: each has a shape of its own


@dataclass(frozen=True, eq=False)
class Place:
    """A block of a network and the states that enter it.

    stage, block: indices. field: f(t, y). time: at which the block begins. step_size: h. substeps: steps in the block.
    scheme: which integrates it. state: (B, ...).
    """

    stage: int
    block: int
    field: Field
    time: float
    step_size: float
    substeps: int
    scheme: Scheme
    state: State

    def slope(self, y: State) -> State:
        """dy/dt at the beginning of the block."""
        return guarded(self.field)(self.time, y)

    def increment(self, y: State) -> State:
        """h f(y): its Jacobian has the eigenvalues h lambda."""
        return self.step_size * self.slope(y)

    def step(self, y: State) -> State:
        """The first time step of the block; not for multistep schemes, whose step depends on more than y."""
        return self.scheme.step(guarded(self.field), self.time, y, self.step_size)

    @property
    def undo(self) -> Map | None:
        """The inverse of `step` where that takes no solve, else None: a step of the adjoint scheme with -h.

        The mirror of explicit Euler has it. Source: Hairer, Lubich & Wanner (2006), section II.3.
        """
        tableau = self.scheme.tableau
        if tableau is None or tableau.A.tolist() != [[1.0]]:
            return None
        return lambda y: y - self.step_size * guarded(self.field)(self.time + self.step_size, y)

    def advance(self, y: State) -> State:
        """All time steps of the block, with the same exception."""
        f = guarded(self.field)
        for k in range(self.substeps):
            y = self.scheme.step(f, self.time + k * self.step_size, y, self.step_size)
        return y


def trajectories(net: nn.Module, x: State) -> tuple[list[tuple[ODEStage, States]], Tensor]:
    """Run `net` once and keep what happens inside its stages.

    Args:
        net: Any module with `ODEStage`s, or a stage.
        x: Images (B, ...); for a stage, states.

    Returns:
        ([(stage, states)], output): the stages in the order in which they run, each with its trajectory
        (1 + fields * substeps, B, ...).
    """
    found: list[tuple[ODEStage, States]] = []

    def ask(stage: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "trajectory": True}

    def keep(stage: Any, args: tuple, states: Tensor) -> Tensor:
        found.append((stage, states))
        return states[-1].clone()  # the next layer may write into it

    stages = odenets.stages(net).values()
    hooks = [
        hook
        for stage in stages
        for hook in (stage.register_forward_pre_hook(ask, prepend=True, with_kwargs=True), stage.register_forward_hook(keep))
    ]
    try:
        output = net(x.clone())  # its first layer may write into it
    finally:
        for hook in hooks:
            hook.remove()
    return found, output


def places(net: nn.Module, x: State) -> list[Place]:
    """The blocks of a network, in order, each as a `Place` with the states that enter it.

    Args:
        net: Any module with `ODEStage`s, or a stage.
        x: Images (B, ...); for a stage, states.

    Raises:
        ValueError: No stage in it, BatchNorm in training mode, an empty batch, NaN or Inf in x.
    """
    check_net(net, x)
    with torch.no_grad():
        found, _ = trajectories(net, x)
    return [
        Place(
            index,
            block,
            field,
            block * stage.interval,
            stage.step_size,
            stage.substeps,
            stage.scheme,
            states[block * stage.substeps],
        )
        for index, (stage, states) in enumerate(found)
        for block, field in enumerate(stage.fields)
    ]


def check_net(net: nn.Module, x: State) -> None:
    """ValueError where a network cannot be analysed at x."""
    if not odenets.stages(net):
        raise InputError(f"{type(net).__name__} has no ODEStage; odenets.convert makes them of a torchvision ResNet's blocks")
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"{name} is a {type(module).__name__} in training mode, so that samples depend on each other; call eval() first"
            )
    check_state(x)
