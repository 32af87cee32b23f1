"""The precision of solves: equations are solved, and errors controlled, in float32 or more, whatever is around them.

In bfloat16 a residual is rounded to 0.4 % of the state: it may vanish far from the root, or never fall below a tolerance of
1e-3 though the root is near. Either way its norm says nothing, so no solve computes in it. Nor in TF32, whose 10 bits a GPU
takes for the convolutions of float32 unless it is told otherwise, nor in what `torch.set_float32_matmul_precision` allows.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from odenets.errors import InputError

LOW = (torch.float16, torch.bfloat16)


def unrounded(tensor: Tensor) -> AbstractContextManager:
    """A context in which operations on tensors like this one are as precise as their dtype: no autocast, no TF32.

    Where torch.compile traces, what it allows of TF32 stands: it cannot trace the switch. Threads may solve side by side.
    """
    kind = tensor.device.type
    exact = torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()
    if torch.compiler.is_compiling() or tensor.dtype != torch.float32 or not (_solving or _rounds(kind)):
        return exact
    return _exact(exact)


@contextmanager
def _exact(within: AbstractContextManager) -> Iterator[None]:
    """`within` without TF32. Of several at once the first to enter switches, and the last to leave switches back."""
    with _lock:
        _solving.append(None)  # before the switch is touched, for others look at it without the lock
        if len(_solving) == 1:
            _before.append(_tell("ieee"))
    try:
        with within:
            yield
    finally:
        with _lock:
            if len(_solving) == 1:
                _tell_again(_before.pop())
            _solving.pop()


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """A context in which products and convolutions of float32, forward and backward, are computed in "ieee" or "tf32".

    For one thread. What follows torch's overall switch by default follows it no longer afterwards: whoever changes his mind
    then tells `torch.backends.cudnn.conv`, not `torch.backends`.
    """
    before = _tell(precision)
    try:
        yield
    finally:
        _tell_again(before)


_lock = threading.Lock()
_solving: list[None] = []  # one for each `_exact` that is entered
_before: list[Any] = []  # what holds where there is none


def _parts(kind: str) -> list[Any]:
    """What multiplies on a device; convolutions first."""
    backends: Any = torch.backends  # whose attributes mypy does not know
    if kind == "cuda":
        return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
    return [backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul]


def _rounds(kind: str) -> bool:
    return any(part.fp32_precision not in ("none", "ieee") for part in _parts(kind))


def _tell(precision: str) -> tuple[str, list[str]]:
    """Have products computed so; returns what held before.

    torch has two languages for it, and refuses to answer in the elder where the other was told something else.
    """
    parts, elder = [*_parts("cuda"), *_parts("cpu")], _matmul_precision()
    before = [part.fp32_precision for part in parts]
    _tell_elder("high" if precision == "tf32" else "highest", precision)
    for part in parts[:3] if precision == "tf32" else parts:
        if part.fp32_precision not in (precision, "none"):
            part.fp32_precision = precision
    return elder, before


def _tell_again(found: tuple[str, list[str]]) -> None:
    elder, before = found
    _tell_elder(elder, before[0])
    for part, own in zip([*_parts("cuda"), *_parts("cpu")], before):
        if part.fp32_precision != own:
            part.fp32_precision = own


def _tell_elder(matmul: str, convolutions: str) -> None:
    if _matmul_precision() != matmul:
        torch.set_float32_matmul_precision(matmul)
    if (_parts("cuda")[0].fp32_precision == "tf32") != (convolutions == "tf32"):
        torch.backends.cudnn.allow_tf32 = convolutions == "tf32"


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set in torch's new language, for one backend
        return "high" if _parts("cuda")[2].fp32_precision == "tf32" else "highest"


def _autocasts(kind: str) -> bool:
    # torch.compile of torch 2.11 cannot trace the first question, and knows no device without autocast.
    return (torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)) and torch.is_autocast_enabled(kind)


def solving(y: Tensor, what: object) -> AbstractContextManager:
    """The context in which `what` may solve equations for states like y; InputError in a dtype that holds no residual."""
    check_precision(y, what)
    return unrounded(y)


def check_precision(y: Tensor, what: object) -> None:
    """Refuse to solve in a dtype in which a residual means nothing."""
    if y.dtype in LOW:
        raise InputError(
            f"{what} cannot solve in {y.dtype}, where the rounding of a residual hides whether it vanishes: give "
            "it float32 or float64; an ODEStage does so by itself"
        )


def precise(scheme: Any, y: Tensor, fields: Sequence[nn.Module] | nn.ModuleList) -> tuple[Tensor, Any, torch.dtype]:
    """What a pass through a stage computes with.

    Where `scheme` solves equations or controls errors, states of half precision become float32, and so do the parameters and
    buffers of the fields: the result is the float32 solve with the rounded weights, rounded once at the end of the stage.
    Under autocast the states are float32 for every scheme, to which small increments are added one by one, and remain so.

    Args:
        scheme: A `Scheme`.
        y: The state that enters, (B, ...).
        fields: Modules f(t, y).

    Returns:
        (the state, callables f(t, y), the dtype of the result).
    """
    kind = y.device.type
    autocast = _autocasts(kind)
    if y.dtype not in LOW and not autocast:
        return y, fields, y.dtype
    state = y.float() if y.dtype in LOW else y
    if scheme.evaluations is None:
        return state, [_precise(field, n, scheme) for n, field in enumerate(fields)], state.dtype if autocast else y.dtype
    return (state, fields, state.dtype) if autocast else (y, fields, y.dtype)


def _precise(field: Any, n: int, scheme: Any) -> Callable[..., Any]:
    """The field with parameters and buffers in float32 at least; gradients reach those it has."""
    own = (*field.named_parameters(), *field.named_buffers())
    raised = {name: tensor.float() for name, tensor in own if tensor.dtype in LOW}

    def f(t: Any, y: Tensor) -> Tensor:
        try:
            with unrounded(y):  # a backward pass may evaluate it in another context than the step did
                slope = functional_call(field, raised, (t, y)) if raised else field(t, y)
        except RuntimeError as error:
            if "type" not in str(error):  # torch names dtypes that do not go together in many ways
                raise
            raise InputError(_sentence(n, scheme, f"fails on {y.dtype} states ({str(error).splitlines()[0]})")) from error
        if slope.dtype in LOW:
            raise InputError(_sentence(n, scheme, f"returns {slope.dtype} for {y.dtype} states"))
        return slope

    named: Any = f
    named.autonomous = getattr(field, "autonomous", False)
    if hasattr(field, "parts"):
        named.parts = tuple(_precise(part, n, scheme) for part in field.parts)
    return f


def _sentence(n: int, scheme: object, what: str) -> str:
    return (
        f"field {n} {what}: {scheme} computes in float32 or float64, whatever the network around it does, and so must its "
        "fields: make their tensors parameters or buffers of a module, which are converted, and convert no state in them"
    )
