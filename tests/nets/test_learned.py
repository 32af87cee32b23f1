import pytest
import torch

import odenets
from odenets.nets.learned import LearnedLMStage


def _fields(device):
    torch.manual_seed(0)
    return [odenets.fields.Block(odenets.fields.basic_layers, 4).double().to(device) for _ in range(3)]


def test_starts_as_the_scheme_of_the_catalogue(device, generator):
    fields, y = _fields(device), torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64).to(device)
    learned = LearnedLMStage(fields, k=0.3).double().to(device)
    assert torch.allclose(learned(y), odenets.ODEStage(fields, "lm_resnet(k=0.3)")(y))
    assert learned(y, trajectory=True).shape == (4, *y.shape)


def test_k_is_trained(device, generator):
    learned = LearnedLMStage(_fields(device)).double().to(device)
    learned(torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64).to(device)).square().sum().backward()
    assert learned.k.shape == (2,) and learned.k.grad.abs().min() > 0
    with pytest.raises(ValueError, match="k must lie in"):
        LearnedLMStage(_fields(device), k=2)
