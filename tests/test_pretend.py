"""The pretend accelerator refuses what CUDA refuses, takes what CUDA takes, and computes what the CPU computes.

The rules are those of CUDA as torch documents them: operands on one device; tensors without axes from the CPU are numbers
to pointwise operations, one of them at most; indices may lie on the CPU, not the indexed alone; copies cross; a generator
belongs to its device.
"""

import copy
import io

import audited
import make_nets
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import odenets
import stability
from experiments.benchmarks import pretend
from experiments.harness.training import data
from experiments.harness.training import loop as training
from experiments.harness.training.settings import TrainingSettings

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch knows one accelerator at a time")
OTHER_DEVICE = (
    "all tensors to be on the same device|on the same device as the indexed|Expected a '|expected device|should be the same"
)


@pytest.fixture
def there():
    with pretend.device() as device:
        yield device


def _operands(device):
    """d: of the device, c: of the CPU; m matrices, v vectors, n numbers, i indices."""
    made = {}
    for letter, where in (("d", device), ("c", "cpu")):
        made |= {f"m{letter}": torch.ones(3, 3, device=where), f"v{letter}": torch.ones(3, device=where)}
        made |= {f"n{letter}": torch.tensor(2.0, device=where), f"i{letter}": torch.tensor([0, 2], device=where)}
        made[f"g{letter}"] = torch.Generator(where)
    return made


REFUSED = [
    "vd + vc",
    "vc + vd",
    "vc + nd",
    "vc.mul_(vd)",
    "vd.mul_(vc)",
    "vc.mul_(nd)",
    "nc.add_(nd)",
    "torch.add(vd, vd, out=torch.empty(3))",
    "md @ mc",
    "md @ vc",
    "torch.cat([vd, vc])",
    "torch.stack([nd, nc])",
    "torch.where(vd > 0, vd, vc)",
    "torch.where(vc > 0, vd, vd)",
    "torch.addcmul(vd, vd, vc)",
    "vd.index_select(0, ic)",
    "vd.gather(0, ic)",
    "vc[id]",
    "md.index_put_((ic,), mc[:2])",
    "vd.index_copy(0, ic, vd[:2])",
    "vd.masked_fill(vc > 0, 0.0)",
    "F.linear(vd, mc)",
    "F.conv2d(md[None, None], mc[None, None])",
    "F.cross_entropy(md, torch.zeros(3, dtype=torch.long))",
    "F.group_norm(md[None], 3, vc, vc)",
    "torch.linalg.solve(md + 2 * torch.eye(3), vd)",
    "torch.dot(vd, vc)",
    "torch.equal(vd, vc)",
    "torch.randn(3, device=D, generator=gc)",
    "vd.normal_(generator=gc)",
    "torch.func.vjp(torch.sin, vd)[1](vc)",
    "torch.func.jvp(lambda x: x + vc, (vd,), (vd,))",
    "torch.func.vmap(torch.add)(md, mc)",
    "torch.autograd.grad(vd.requires_grad_() * 2, vd, vc)",
]
TAKEN = {  # what is computed: on the device?
    "vd + nc": True,
    "nc * vd": True,
    "vd.add_(nc)": True,
    "vd > nc": True,
    "torch.where(vd > 0, vd, nc)": True,
    "vd.masked_fill(vd > 0, nc)": True,
    "vd.fill_(nc)": True,
    "vd[ic]": True,
    "md[ic, id]": True,
    "md.index_put_((ic,), nc)": True,
    "md.__setitem__(0, vc) or md": True,
    "vd.copy_(vc)": True,
    "vc.copy_(vd)": False,
    "vd.to('cpu') + vc": False,
    "vd + vc.to(D)": True,
    "torch.as_tensor(np.ones(3), device=D) + vd": True,
    "torch.full_like(vd, 2) + torch.zeros(3, device=D)": True,
    "torch.randn(3, device=D, generator=gd)": True,
    "torch.ones(3) * vd.sum().item()": False,
    "vd if bool(vd.sum() > 0) else vc": True,
    "torch.tensor(vd.tolist())": False,
    "torch.func.vmap(torch.add, (0, None))(md, nc)": True,
    "torch.autograd.grad((vd.requires_grad_() * 2).sum(), vd, nc)[0]": True,
}


def _evaluate(expression, device):
    names = {"torch": torch, "F": F, "np": np, "D": device, **_operands(device)}
    return eval(expression, names)


@pytest.mark.parametrize("expression", REFUSED)
def test_what_cuda_refuses_is_refused(expression):
    pretend.install()
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        _evaluate(expression, torch.device(pretend.NAME))


@pytest.mark.parametrize("expression", TAKEN)
def test_what_cuda_takes_is_computed(expression):
    pretend.install()
    found = _evaluate(expression, torch.device(pretend.NAME))
    assert (found.device.type == pretend.NAME) is TAKEN[expression]
    assert np.allclose(found.cpu(), _evaluate(expression, torch.device("cpu"))) or "generator" in expression


def test_there_is_no_way_to_numpy_but_by_the_cpu(there):
    x = torch.ones(3, device=there)
    with pytest.raises(TypeError, match="can't convert pretend:0 device type tensor to numpy"):
        np.asarray(x)
    assert np.asarray(x.cpu()).sum() == 3


def test_copies_and_files_keep_the_device(there):
    x, file = {"x": torch.randn(2, 3, device=there)}, io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    for again in (copy.deepcopy(x)["x"], torch.load(file, weights_only=True)["x"]):
        assert again.device == there and torch.equal(again, x["x"])
    file.seek(0)
    assert torch.load(file, weights_only=True, map_location="cpu")["x"].device.type == "cpu"


def test_moved_modules_keep_their_parameters_and_tied_ones_stay_tied(there):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = weight = net[0].weight
    assert net.to(there)[0].weight is weight is net[1].weight and weight.device == there


def _pair(scheme, device, count=12):
    """The shipped implicit net twice: on the CPU and on the device, with images."""
    net, sample = audited.trained(scheme, "implicit"), audited.sample(count)
    return (net, *sample), (copy.deepcopy(net).to(device), *(part.to(device) for part in sample))


class Mixed(torch.nn.Module):
    """A field or a network that adds a tensor left behind on the CPU."""

    def __init__(self, net):
        super().__init__()
        self.net, self.left_behind = net, torch.zeros(1)

    def forward(self, *inputs):
        return self.net(*inputs) + self.left_behind


EPSILON = stability.Linf(0.1)
AREAS = {  # what is asked of a net, its images and labels
    "solver": lambda net, x, y: net(x).detach(),
    "gradient": lambda net, x, y: torch.autograd.grad(F.cross_entropy(net(x.clone().requires_grad_()), y), net.parameters())[0],
    "attack": lambda net, x, y: stability.pgd(net, x, y, EPSILON, 3, generator=audited.generator()),
    "apgd": lambda net, x, y: stability.apgd(net, x, y, EPSILON, 3, generator=audited.generator()),
    "square": lambda net, x, y: stability.square(net, x, y, EPSILON, 5, generator=audited.generator()),
    "judge": lambda net, x, y: stability.worst_case(net, x, y, EPSILON, [lambda net, x, y: x]).robust,
}


def _state(net, x):
    """A block of the net, and states that reach it."""
    place = stability.places(net, x)[0]
    return place.slope, place.state


@pytest.mark.parametrize("area", AREAS)
def test_an_area_gives_what_the_cpu_gives_and_refuses_a_mixture(area, there):
    here, moved = _pair("implicit(tol=1e-2)", there)
    expected, found = AREAS[area](*here), AREAS[area](*moved)
    assert found.device == there
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        AREAS[area](Mixed(moved[0]), *moved[1:])
    with pytest.raises((RuntimeError, ValueError), match=f"{OTHER_DEVICE}|on their device"):
        AREAS[area](moved[0], here[1] if area == "solver" else moved[1], here[2])


def test_spectra(there):
    here, moved = _pair("explicit", there)
    (f, y), (g, z) = _state(*here[:2]), _state(*moved[:2])
    assert z.device == there
    found, expected = stability.spectrum(g, z[:2], k=2), stability.spectrum(f, y[:2], k=2)
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stability.log_norm(g, z[:2]).cpu(), stability.log_norm(f, y[:2]).cpu(), rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        stability.spectrum(lambda y: g(y) + torch.zeros(1), z[:2], k=2)


def test_the_audit(there):
    here, moved = _pair("explicit", there, 4)
    short = {"steps": 4, "many_steps": 5, "queries": 5}
    own, result = (stability.audit(*case, EPSILON, generator=audited.generator(), **short) for case in (here, moved))
    assert {check.name: check.passed for check in result.checks} == {check.name: check.passed for check in own.checks}
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        stability.audit(Mixed(moved[0]), *moved[1:], EPSILON)


def test_training(there):
    digits = data.load("digits", None)
    on = {
        "cpu": digits,
        there.type: data.Data("digits", 10, *(s.to(there) for s in (digits.train, digits.held_out, digits.test))),
    }
    weights = {}
    for device, images in on.items():
        torch.manual_seed(0)
        net = make_nets.small("implicit(tol=1e-2)").to(device)
        training.train(net, images, TrainingSettings(epochs=1, batch_size=400), 0)
        weights[device] = net.head[-1].weight.detach().cpu()
    torch.testing.assert_close(weights["cpu"], weights[there.type], rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=OTHER_DEVICE):
        training.train(make_nets.small(), on[there.type], TrainingSettings(epochs=1, batch_size=400), 0)


def test_a_state_dict_of_either_device_loads_on_the_other(there):
    net, other = make_nets.small().to(there), make_nets.small()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.stem[0].weight, net.stem[0].weight.cpu()) and other.stem[0].weight.device.type == "cpu"
    net.load_state_dict(other.state_dict())
    assert net.stem[0].weight.device == there


def test_backward_passes_of_a_device_run_in_threads_of_their_own(there):
    # Nodes made in such a thread are numbered from elsewhere: what an implicit step depends on is found all the same.
    y = torch.randn(3, 4, device=there)
    assert not odenets.ODEStage([lambda t, y: torch.sin(y)], "ros2")(y).requires_grad
