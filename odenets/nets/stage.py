"""A stage of a residual network as an initial value problem: fields in sequence, a scheme, a step size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import nn

from odenets.errors import InputError, NoStatistics
from odenets.nets.functions import as_function
from odenets.nets.guard import Habits
from odenets.nets.statistics import Outcome, StageStats
from odenets.schemes import GRADIENTS, Scheme, Tableau, get_scheme
from odenets.solve.log import Guesses, Record
from odenets.solve.precision import precise
from odenets.types import Field, Flags, State, Time, Trajectory


class ODEStage(nn.Module):
    """Integrates y' = f(t, y); field n holds on [n * interval, (n + 1) * interval].

    A residual stage y <- y + f_n(y) is this with explicit Euler, interval 1 and one substep.

    Args:
        fields: Callables f(t, y) -> dy/dt, (B, ...) -> (B, ...), each sample on its own; modules among them are registered.
            One that writes into y, such as a block that begins with an in-place ReLU, is handed copies; see `Guard`.
        scheme: A spec ("rk4", "implicit_euler(tol=1e-6)") or a `Scheme`.
        interval: Length of time for each field.
        substeps: Steps for each field; the step size is interval / substeps.

    Attributes:
        stats: `StageStats` of the last forward pass.
    """

    channels_last = False  # set by `odenets.channels_last`
    held_at: tuple[int, int, int] | None = None  # shape of the states; set by `odenets.at_limit`, see `odenets.hold`
    scheme: Scheme
    substeps: int
    gradient: str

    def __init__(
        self,
        fields: Field | Sequence[Field] | nn.ModuleList,
        scheme: str | Scheme | Tableau = "explicit",
        interval: float = 1.0,
        substeps: int = 1,
    ) -> None:
        super().__init__()
        given: list[Any] = list(fields) if isinstance(fields, (list, tuple, nn.ModuleList)) else [fields]
        if not given:
            raise InputError("a stage needs at least one field")
        self.fields = nn.ModuleList(f if isinstance(f, nn.Module) else _Function(f) for f in given)
        if not 0 < interval < float("inf"):
            raise InputError(f"interval must be positive and finite, got {interval}")
        self.interval = float(interval)
        self.configure(scheme=scheme, substeps=substeps, gradient="exact")
        self._habits = Habits()
        self._last: StageStats | None = None  # of the last forward pass, for `stats`; never read by a forward pass
        self._noted: tuple[list[StageStats], ...] = ()  # every pass is appended to these, see `evaluate`

    def configure(
        self, scheme: str | Scheme | Tableau | None = None, substeps: int | None = None, gradient: str | None = None
    ) -> None:
        """Change scheme, substeps or gradient; None leaves each as it is. Nothing changes when a value is refused."""
        chosen: Scheme = self.scheme if scheme is None else get_scheme(scheme)
        substeps = self.substeps if substeps is None else substeps
        gradient = self.gradient if gradient is None else gradient
        if isinstance(substeps, bool) or not isinstance(substeps, Integral) or substeps < 1:
            raise InputError(f"substeps must be a whole number of at least 1, got {substeps!r}")
        if gradient not in GRADIENTS:
            raise InputError(f"unknown gradient {gradient!r}; choose from {', '.join(GRADIENTS)}")
        self.scheme, self.substeps, self.gradient = chosen, int(substeps), gradient

    @property
    def step_size(self) -> float:
        """h = interval / substeps."""
        return self.interval / self.substeps

    def forward(self, y: State, trajectory: bool = False, guesses: Guesses | None = None) -> State | Trajectory:
        """The state at the end, (B, ...); with `trajectory`, all states (1 + fields * substeps, B, ...), y first.
        `guesses`: where a caller wants the solves to start, see `WarmStart`."""
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # where writes to a tensor are counted
                return self.forward(y, trajectory, guesses)
        if self.scheme.looks_at_values and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            raise InputError(
                f"{self.scheme} looks at values to see when it is done, which torch.export and torch.jit.trace do "
                "not record: take an explicit scheme, ie_skip, or implicit_euler(fixed=true) and the like"
            )
        self._refuse_impure_fields()
        y, fields, dtype = precise(self.scheme, y, self.fields)
        last = self.channels_last and y.dim() == 4
        if last:
            y = y.movedim(1, -1).contiguous()
        record, h, states = Record(guesses), self.step_size, [y]
        self._last = StageStats(self._steps, len(y), y.device, record.entries, self._startup_only, self.scheme.solves)
        for passes in self._noted:
            passes.append(self._last)
        step, running, guard = self.scheme.stepper(), [True], self._habits.guard(self.training)
        for n, field in enumerate(fields):
            f = as_function(field, n, running if self.scheme.iterates else None, guard, last)
            for k in range(self.substeps):
                y = step(f, n * self.interval + k * h, y, h, self.gradient, record)
                if trajectory:
                    states.append(y)
        running.clear()
        if self.scheme.implicit and y.requires_grad:
            y = y.clone()  # the next layer may write into it, and the backward pass needs the root
        result = torch.stack(states) if trajectory else y
        return (result.movedim(-1, -3) if last else result).to(dtype)

    @property
    def stats(self) -> StageStats:
        """Statistics of the last forward pass, and of the backward passes through it so far."""
        if self._last is None:
            raise NoStatistics("no statistics yet: run the stage first")
        return self._last

    def __getattr__(self, name: str) -> Any:
        if name == "stats":  # Python comes here for a property without a value, and torch's answer would mislead
            raise NoStatistics("no statistics yet: run the stage first")
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last pass: its tensors may belong to a transform that has ended, and a copy has not run yet."""
        return {**self.__dict__, "_last": None, "_noted": ()}

    @property
    def _steps(self) -> int:
        return len(self.fields) * self.substeps

    @property
    def _startup_only(self) -> bool:
        return 0 < self._steps <= self.scheme.previous

    def extra_repr(self) -> str:
        """Scheme, interval, substeps and gradient for print(net)."""
        note = " (of which only the start-up runs)" if self._startup_only else ""
        return f"scheme={self.scheme}{note}, interval={self.interval:g}, substeps={self.substeps}, gradient={self.gradient}"

    def _refuse_impure_fields(self) -> None:
        for name, module in self.fields.named_modules() if self.scheme.iterates else ():
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if batch_norm and module.running_mean is None:
                raise InputError(
                    f"field {name} is a {type(module).__name__} without running statistics: each sample would "
                    f"depend on its neighbours, so {self.scheme} cannot solve with it: use GroupNorm"
                )
            tracking = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
            if module.training and (batch_norm or tracking or isinstance(module, nn.modules.dropout._DropoutNd)):
                raise InputError(
                    f"field {name} is a {type(module).__name__} in training mode, which is not a function of the "
                    f"state alone, so {self.scheme} cannot solve with it: call eval() or use GroupNorm"
                )


class _Function(nn.Module):
    """A plain callable among the fields."""

    def __init__(self, function: Field) -> None:
        super().__init__()
        self.function = function

    def forward(self, t: Time, y: State) -> State:
        return self.function(t, y)


def stages(net: nn.Module) -> dict[str, ODEStage]:
    """{name: stage} of all `ODEStage`s in a network (or of the stage itself)."""
    return {name: module for name, module in net.named_modules() if isinstance(module, ODEStage)}


def _configure(net: nn.Module, **settings: Any) -> None:
    found = stages(net).values()
    if not found:
        raise InputError(f"{type(net).__name__} has no ODEStage")
    for stage in found:
        stage.configure(**settings)


def set_scheme(net: nn.Module, scheme: str | Scheme | Tableau, substeps: int | None = None) -> None:
    """Give every stage of `net` another scheme, in place, same weights; `substeps` None leaves them as they are."""
    _configure(net, scheme=get_scheme(scheme), substeps=substeps)


def set_gradient(net: nn.Module, gradient: str) -> None:
    """Choose how every stage of `net` is differentiated, in place.

    "exact": the derivative of the value returned: autograd, through the correction of ie_skip too; at the root of an
    implicit scheme the implicit function theorem. "unrolled": for implicit schemes the derivative of the iteration that was
    computed. "detached": the value of ie_skip or of an implicit scheme with the backward of its explicit predictor
    x + h f(x), as the authors' code has it. Explicit schemes have one gradient, whatever the choice.
    """
    _configure(net, gradient=gradient)


def channels_last(net: nn.Module, wanted: bool = True) -> None:
    """Keep the states of the stages of `net` and the weights of its convolutions with their channels last in memory; in place.

    Convolutions are faster so (docs/solvers.md has the figures); values differ by rounding. Schemes and solvers see states
    (B, H, W, C), fields and everything around a stage (B, C, H, W) as ever.
    """
    net.to(memory_format=torch.channels_last if wanted else torch.contiguous_format)
    for stage in stages(net).values():
        stage.channels_last = wanted


@contextmanager
def tightened(net: nn.Module, tol: float = 1e-6, max_iterations: int = 200) -> Iterator[nn.Module]:
    """Within the context, the equations of `net` are solved to `tol` (or their own, if smaller); restored afterwards."""
    before = {stage: stage.scheme for stage in stages(net).values()}
    try:
        for stage, scheme in before.items():
            if scheme.solves:
                stage.configure(scheme=scheme.tightened(tol, max_iterations))
        yield net
    finally:
        for stage, scheme in before.items():
            stage.configure(scheme=scheme)


def converged(net: nn.Module, backward: bool = False) -> Flags | None:
    """(B,) bool: every equation in the last forward pass of `net` was solved; None where it solved none. With `backward`, the
    linear systems of the backward passes through it so far."""
    found = [stats for stats in (stage.stats for stage in stages(net).values()) if stats.solving]
    return torch.stack([stats.backward_converged if backward else stats.converged for stats in found]).all(0) if found else None


@contextmanager
def recorded(net: nn.Module) -> Iterator[list[StageStats]]:
    """Within the context every pass through a stage of `net` is noted in the list that it gives: a `StageStats` each.

    Contexts may be nested, each has all the passes within it. For whoever runs a net otherwise than `evaluate` does.
    """
    before = {stage: stage._noted for stage in stages(net).values()}
    passes: list[StageStats] = []
    try:
        for stage, noted in before.items():
            stage._noted = (*noted, passes)
        yield passes
    finally:
        for stage, noted in before.items():
            stage._noted = noted


def evaluate(net: nn.Module, x: State) -> tuple[torch.Tensor, Outcome]:
    """net(x), and what became of the equations of this very evaluation, whatever runs before, after or in between.

    Args:
        net: Any module, with or without `ODEStage`s.
        x: What it takes, (B, ...). Where it runs a stage on other than B states (several views of an image in one batch, or
            the images in parts) and an equation is left unsolved, each image is evaluated on its own, to tell whose it was.

    Returns:
        (net(x), its `Outcome`).
    """
    with recorded(net) as passes:
        value = net(x)
    if len(x) > 1 and any(found.batch != len(x) and found.unconverged for found in passes):
        values, outcomes = zip(*(evaluate(net, image) for image in x.split(1)))
        return torch.cat(values), Outcome.joined(outcomes)
    return value, Outcome.of(len(x), passes)
