"""Shared fixtures: the suite takes the device as a parameter, so that the same tests run on CUDA where there is one."""

import pytest
import torch
import typechecked

typechecked.install()  # before anything imports the packages
torch.set_num_threads(1)  # small problems; and results do not depend on the machine's cores


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
