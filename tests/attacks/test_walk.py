"""How many calls lie between `worst_case` and a stage: docs/walks.md tells them."""

import sys
from pathlib import Path

import torch

import odenets
import stability

FRAMES = 11
OURS = tuple(str(Path(package.__file__).parent) for package in (odenets, stability))
STAGE = getattr(odenets.ODEStage.forward, "__wrapped__", odenets.ODEStage.forward).__code__


def _callers(run):
    """The names of our own frames around every evaluation of a stage in run(), the outermost first."""
    found = []

    def note(frame, event, argument):
        code = frame.f_code
        if event != "call" or code is not STAGE:
            return
        names, caller = [], frame.f_back
        while caller is not None and caller.f_code.co_name != "worst_case":
            path, name = caller.f_code.co_filename, caller.f_code.co_name
            # `call` is the tests' own: what checks annotations (tests/typechecked.py).
            names += [name] * (name != "call" and path.startswith(OURS))
            caller = caller.f_back
        found.append(names[::-1])

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def test_no_wrapper_stands_between_an_attack_and_the_network():
    torch.manual_seed(0)
    net, x = odenets.ode_resnet_small(scheme="implicit").eval(), torch.rand(2, 1, 8, 8)
    threat, y = stability.Linf(0.01), net(x).argmax(1)
    attack = stability.before_the_judge(stability.get_attack("pgd2").bound(threat, 0))
    walks = _callers(lambda: stability.worst_case(net, x, y, threat, [attack]))
    attacked = [walk for walk in walks if "pgd" in walk]
    assert attacked and max(map(len, attacked)) <= FRAMES
    assert not any("<lambda>" in walk for walk in attacked)
