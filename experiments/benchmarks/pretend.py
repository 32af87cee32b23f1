"""A pretend accelerator: tensors of a device of their own, whose numbers lie in the CPU's memory.

Mixing it with plain CPU tensors is refused as CUDA refuses it, so "works on CUDA" is tested on every machine. It is torch's
PrivateUse1 backend, registered from Python: autograd (with its device threads), torch.func, modules and serialisation
treat it as they treat any device. A tensor has the metadata and the storage of that device; to the storage belongs one of
the CPU (`twin`), and an operation runs on views of the twins. Installed once in a process, it cannot be undone.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_CPU, _META = torch.device("cpu"), torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
_aten = torch.ops.aten
# What CUDA registers no kernel for that would take CPU tensors among a device's, as whole tensors and not as numbers.
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "index.Tensor_out"}
# Beside the pointwise operations these take numbers from the CPU, as tensors without axes.
NUMBERS = {"where", "masked_fill", "masked_fill_", "fill_", "fill", "index_fill", "index_fill_"} | INDEXING
_torchs, _default = torch.Generator, torch.Generator()


_owned: set[int] = set()
_torch: Any = torch


def _address(generator: Any) -> int:
    return generator._cdata


class Generator(torch.Generator):
    """Random numbers of the pretend device; torch hands it to kernels as one of its own class."""

    def __init__(self) -> None:
        _owned.add(_address(self))
        weakref.finalize(self, _owned.discard, _address(self))

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The pretend one."""
        return torch.device(NAME, 0)


class _Constructor(type):
    """`torch.Generator` as it stands in torch, but for generators of this device."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return Generator() if torch.device(device).type == NAME else _torchs(device)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _torchs)


class _Module:
    """What torch asks of `torch.pretend`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        _default.manual_seed(seed + 1)  # a device has its own numbers

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return _default.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        _default.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@dataclass(frozen=True)
class _Traits:
    """What the schema of an operation says."""

    name: str
    writes: tuple[int, ...]  # positions of arguments that it changes
    written: tuple[str, ...]  # and their names
    numbers: bool  # takes a CPU tensor without axes as a number
    indexes: bool
    draws: bool  # takes a generator
    tensors: frozenset[int]  # positions of arguments that are tensors


@cache
def _traits(operation: Any) -> _Traits:
    schema = operation._schema
    name = schema.name.removeprefix("aten::")
    writes = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    numbers = torch.Tag.pointwise in operation.tags or name in NUMBERS
    draws = any(argument.name == "generator" for argument in schema.arguments)
    tensors = frozenset(i for i, argument in enumerate(schema.arguments) if str(argument.type) == "Tensor")
    return _Traits(
        name, tuple(writes), tuple(schema.arguments[i].name for i in writes), numbers, name in INDEXING, draws, tensors
    )


def _twin(tensor: Any) -> torch.Tensor:
    """The CPU's view of the numbers of a device's tensor."""
    there = torch.empty(0, dtype=tensor.dtype)
    there.set_(tensor.untyped_storage().twin, tensor.storage_offset(), tensor.size(), tensor.stride())
    there = torch._conj(there) if tensor.is_conj() else there
    return torch._neg_view(there) if tensor.is_neg() else there


def _strided(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _aten.as_strided.default.redispatch(_META, tensor, like.size(), like.stride(), like.storage_offset())


def _labelled(there: torch.Tensor) -> torch.Tensor:
    """A new tensor of the device with these numbers."""
    tensor = torch._C._acc.create_empty_tensor(there.size(), there.dtype)
    storage: Any = tensor.untyped_storage()
    storage.twin = there.untyped_storage()
    # Says too how many bytes the storage has.
    return _reset(tensor, storage, there.storage_offset(), there.size(), there.stride())


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    return type(value)(_mapped(function, part) for part in value) if type(value) in (list, tuple) else value


def _refuse(device: Any) -> NoReturn:
    raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and {device}!")


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation: refused where CUDA refuses it, else run on the twins."""
    traits, pairs, run = _traits(operation), [], operation
    kwargs = {**kwargs}
    made_here = "device" in kwargs and kwargs["device"] is not None
    if made_here:
        kwargs["device"] = _CPU
    if traits.draws:
        kwargs["generator"] = _own(kwargs.get("generator"))
    foreign: list[torch.Tensor] = []

    def there(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != NAME:
            foreign.append(tensor)
            return tensor
        pairs.append((tensor, _twin(tensor)))
        return pairs[-1][1]

    if any(isinstance(args[i], (bool, int, float, complex)) for i in traits.tensors if i < len(args)):
        run = operation.overloadpacket  # torch shows a number that it had wrapped as a number
    inner = [_mapped(there, value) for value in args]
    inner_named = {name: _mapped(there, value) for name, value in kwargs.items()}
    if foreign:
        _check(traits, foreign, args, kwargs)
    result = run(*inner, **inner_named)
    if traits.writes:
        for tensor, twin in pairs:
            if twin.size() != tensor.size() or twin.stride() != tensor.stride():  # an `out` was resized
                _reset(tensor, tensor.untyped_storage(), twin.storage_offset(), twin.size(), twin.stride())
    same = {id(twin): tensor for tensor, twin in pairs}
    stored = {twin.untyped_storage()._cdata: tensor for tensor, twin in pairs}

    def here(found: torch.Tensor) -> torch.Tensor:
        if id(found) in same:
            return same[id(found)]
        base = stored.get(found.untyped_storage()._cdata)
        if base is None:
            return _labelled(found)
        return _strided(base, found) if base.dtype == found.dtype else operation.redispatch(_META, *args, **kwargs)

    return _mapped(here, result)


def _check(traits: _Traits, foreign: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> None:
    """Raise where CUDA would: CPU tensors among the device's, but for numbers and indices."""
    written = [args[i] for i in traits.writes if i < len(args)] + [kwargs[n] for n in traits.written if n in kwargs]
    if any(tensor is value for tensor in foreign for value in written):
        _refuse("cpu")
    if traits.indexes:
        if args[0].device.type != NAME:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        values = args[2:3]
        foreign = [tensor for tensor in foreign if any(tensor is value for value in values)]
    numbers = [tensor for tensor in foreign if tensor.dim() == 0] if traits.numbers else []
    if len(numbers) < len(foreign):
        _refuse(foreign[0].device)
    if len(numbers) > 1 and traits.name != "where":
        raise RuntimeError("Trying to pass too many CPU scalars to non-CPU kernel!")


def _own(generator: torch.Generator | None) -> torch.Generator:
    """The device's default generator for None."""
    if generator is not None and _address(generator) not in _owned:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")
    return _default if generator is None else generator


def _reset(tensor: torch.Tensor, storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    return _aten.set_.source_Storage_storage_offset.redispatch(_META, tensor, storage, offset, size, stride)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """The one operation that may cross between devices."""
    for tensor in (source, target):
        if tensor.device.type not in (NAME, "cpu"):
            _refuse(tensor.device)
    here, there = (_twin(tensor) if tensor.device.type == NAME else tensor for tensor in (target, source))
    here.copy_(there, non_blocking)
    return target


def _convolution(*args: Any) -> Any:
    return _run(_aten.convolution.default, *args)


def _convolution_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *settings: Any) -> Any:
    no_bias = None
    return _run(_aten.convolution_backward.default, grad, x, weight, no_bias, *settings)


def _zeros(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> torch.Tensor:
    return _labelled(torch.zeros(size, dtype=dtype))


def _kernel(name: str) -> Callable[..., Any]:
    operation, overload = name.partition(".")[::2]
    operation = getattr(getattr(_aten, operation), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return _run(operation, *args, **kwargs)

    return kernel


OWN = {
    "_copy_from": _copy_from,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
    "_efficientzerotensor": _zeros,
    "set_.source_Storage_storage_offset": _reset,
}
_libraries: list[torch.library.Library] = []


def install() -> None:
    """Register the device "pretend" in this process, before its first backward pass: then autograd counts the devices."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, _Module())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((everything, aten))
    everything.fallback(_run, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # Where the CPU has a kernel, and so has CUDA, while other devices are given a composition of other operations.
    defaults = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
    for full in torch._C._dispatch_get_all_op_names():
        if full.startswith("aten::") and has(full, "CPU") and any(has(full, default) for default in defaults):
            name = full.removeprefix("aten::")
            aten.impl(name, _kernel(name), "PrivateUse1")
    for name, function in OWN.items():
        aten.impl(name, function, "PrivateUse1")
    for key in ("Conjugate", "Negative"):  # copying resolves them, and resolving them copies
        aten.impl("_copy_from", torch.library.fallthrough_kernel, key)
    _torch.Generator = _Constructor("Generator", (), {})
    # Copied and pickled by way of their values: torch would read the device's storage, where nothing is.
    has_storage = torch._C._has_storage
    _torch._C._has_storage = lambda tensor: tensor.device.type != NAME and has_storage(tensor)


@contextmanager
def device() -> Iterator[torch.device]:
    """The device, while parameters stay the same objects when they move, as CUDA's do."""
    install()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
