"""Shared fixtures: the suite takes the device as a parameter, so that the same tests run on CUDA where there is one."""

from collections import defaultdict
from contextlib import nullcontext

import pytest
import torch
import typechecked

from experiments.benchmarks import pretend

typechecked.install()  # before anything imports the packages
torch.set_num_threads(1)  # small problems; and results do not depend on the machine's cores
ACCELERATOR = "cuda" if torch.cuda.is_available() else pretend.NAME  # torch knows one at a time
if ACCELERATOR == pretend.NAME:
    pretend.install()


@pytest.fixture(params=["cpu", ACCELERATOR])
def device(request):
    with pretend.device() if request.param == pretend.NAME else nullcontext(torch.device(request.param)) as device:
        yield device


def pytest_collection_modifyitems(config, items):
    """Of a test's variants one runs on the pretend accelerator, where an operation costs 20 microseconds more; all with -m "".

    The last: a list of schemes begins with explicit ones, which ask the least. None of tests marked `no_pretend`.
    """
    whole = not config.option.markexpr
    variants = defaultdict(list)
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("device") == pretend.NAME:
            variants[item.path, item.originalname].append(item)
    left_out = {
        item
        for found in variants.values()
        for index, item in enumerate(found)
        if item.get_closest_marker("no_pretend") or not (whole or index == len(found) - 1)
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
