"""Kernels and host synchronisations of a block of code: what an accelerator would make of it, counted on any device."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that allocate, rename or describe: nothing is launched. Views are recognised by their schema.
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "_unsafe_view"}
# What the host waits for: a value, or a shape that depends on values.
WAITED_FOR = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_eig",
    "_linalg_eigvals",
    "geqrf",
}
SCALARS = {"_local_scalar_dense"}  # a copy of one number, no kernel


@dataclass(frozen=True)
class Counts:
    """What a block of code asked of the device.

    `kernels` operations that compute; `synchronisations` times that the host waited; `operations` {name: calls} of both.
    """

    kernels: int
    synchronisations: int
    operations: dict[str, int]


def count(run: Callable[[], object]) -> Counts:
    """Run once and count the operations that would launch a kernel, and those that the host would wait for.

    An operation is one that reaches the dispatcher below autograd and torch.func: one of CUDA's may launch several kernels.
    Every tensor is taken to be on the device, since the CPU's own look alike; where some are on a device, only operations
    that touch one count, and copies from and to it are waited for.

    Args:
        run: Forward, backward or both; not compiled.
    """
    with _Counting() as counting:
        run()
    return counting.counts()


class _Counting(TorchDispatchMode):
    """The dispatcher's operations by whether a device took part, whether they launch, whether the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[bool, str, bool, bool]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors} - {"meta"}
        name = function._schema.name.removeprefix("aten::")
        crosses = devices > {"cpu"} and name in ("copy_", "_to_copy") and not _is_upload(args, kwargs, result)
        waits = name in WAITED_FOR or crosses or _indexed_by_mask(name, args)
        launches = name not in SILENT | SCALARS and not _is_view(function)
        self.calls[devices != {"cpu"}, name, launches, waits] += bool(devices)
        return result

    def counts(self) -> Counts:
        """Of the accelerator's operations, or of all where none took part."""
        there = any(on_device for (on_device, *_), calls in self.calls.items() if calls)
        kernels = synchronisations = 0
        operations: Counter[str] = Counter()
        for (on_device, name, launches, waits), calls in self.calls.items():
            if on_device == there and (launches or waits):
                kernels += calls * launches
                synchronisations += calls * waits
                operations[name] += calls
        return Counts(kernels, synchronisations, dict(operations.most_common()))


def _is_view(function: Any) -> bool:
    returned = [value.alias_info for value in function._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _is_upload(args: Any, kwargs: Any, result: Any) -> bool:
    """A copy to the device with non_blocking=True: the host hands its numbers over and does not wait for the queue."""
    asked = (kwargs or {}).get("non_blocking", False) or (len(args) > 2 and args[2] is True)
    return bool(asked) and result.device.type != "cpu"


def _indexed_by_mask(name: str, args: Any) -> bool:
    """Indexing by a mask looks for its nonzero entries first; assigning one number through it does not."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        return False
    masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masked and (name in ("index", "_unsafe_index") or args[2].numel() != 1)
