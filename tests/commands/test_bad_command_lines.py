"""Bad command lines of every script: one sentence on stderr, exit code 2, nothing written."""

import shlex

import pytest

from experiments import compare_schemes, compare_solvers, evaluate, map_spectra, plot_regions, sweep_steps

OWN = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

def unloadable():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net.load_state_dict({"module." + key: value for key, value in net.state_dict().items()})
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
def one(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
def resnet(): return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
number = 3
"""
LINES = {
    compare_schemes: """
--schemes explicit --seeds 1.5 ; --seeds takes whole numbers
--schemes explicit --seeds 99999999999999999999 ; --seeds must be below 2^63
--schemes explicit --epsilons 1e400 ; --epsilons must be finite
--budget 5 ; --budget takes a time such as 30s, 5m or 1h30m, got '5'
--budget 0s ; --budget takes a time such as 30s
--budget 5m --seeds-at-most 2 ; --seeds-at-most must be finite and at least 3, got 2
--seeds-at-most 5 ; --seeds-at-most needs --budget
--audit some ; unknown --audit 'some'; choose from all, first, cheap, none
--schemes explicit --seeds '' ; --seeds is empty
--schemes explicit --seeds=-1 ; --seeds must be finite and at least 0, got -1
--schemes explicit --seeds 3,3 ; --seeds names 3 twice
--schemes explicit --margin nan ; --margin must be finite
--schemes explicit --margin 2% ; --margin takes one number, got '2%'
--schemes explicit --splits '' ; unknown --splits ''; choose from fixed, per-seed
--budget 5m --seeds-at-most 3.5 ; --seeds-at-most takes one whole number, got '3.5'
--schemes explicit --margin=-2 ; --margin must be finite and at least 0, got -2
--schemes explicit --budget -5m ; expected one argument
--schemes explicit --budget '' ; --budget takes a time such as 30s
--schemes explicit --budget 1e3s ; --budget takes a time such as 30s
--schemes explicit --until-clear ; --schemes explicit leaves nothing to compare
--schemes explicit,heun --until-clear --seeds-at-most 100000 ; takes 1000 seeds at most, got 100000
--schemes explicit --margin 0 ; --margin lies above 0 and below 100 points, got 0
--schemes explicit --margin 100 ; --margin lies above 0 and below 100 points
--schemes explicit --splits often ; unknown --splits 'often'; choose from fixed, per-seed
--schemes explicit --splits per-seed --dataset mnist ; digits or data of your own, which are split here: mnist has
--schemes explicit --margin wide ; --margin takes one number, got 'wide'
--schemes explicit,heun --until-clear --seeds 0,1 ; --seeds makes no sense with it
--schemes explicit,heun --until-clear --smoke ; --smoke makes no sense with it
--schemes explicit,heun --until-clear --seeds-at-most 2 ; --seeds-at-most must be finite and at least 3
--schemes explicit --workers 1e9 ; --workers takes one whole number
--schemes explicit --batch-size 0 ; --batch-size must be finite and at least 1
--schemes explicit --train-limit '' ; --train-limit takes one whole number, got ''
--schemes explicit --attacks pgd-5 ; unknown attack 'pgd-5'
--schemes 'implicit_euler(tol=-1)' ; tol
--schemes 'implicit_euler(tol=nan)' ; tol
--schemes 'implicit_euler(max_iterations=1.5)' ; max_iterations
--schemes 'implicit_euler(' ; implicit_euler(
--schemes '(,)' ; (,)
--schemes 'rkc1(stages=2.5)' ; stages
--schemes 'rkc1(damping=nan)' ; damping
--schemes 'adaptive(method=zzz)' ; zzz
--schemes 'implicit_euler(solver=zzz)' ; zzz
--schemes explicit --fields 'damped(rate=nan)' ; rate
--schemes explicit --resume --out array ; array/config.json is damaged (it holds no JSON object)
--schemes explicit --resume --out binary ; binary/config.json is damaged
""",
    sweep_steps: """
--schemes explicit --substeps 0 ; --substeps must be finite and at least 1, got 0
--schemes explicit --substeps a ; --substeps takes whole numbers
--schemes explicit --substeps 1,1 ; --substeps names 1 twice
--schemes explicit --substeps '' ; --substeps is empty
--schemes explicit --fields residual ; unrecognized arguments
--read often ; unknown --read 'often'; choose from finer, trained, swap
--read '' ; --read is empty
--substeps 4 ; --read finer compares numbers of steps, and --substeps names one (4)
--read swap --schemes heun ; --read swap runs weights with another scheme, and --schemes names one (heun)
""",
    evaluate: """
own.py:unloadable --dataset digits ; missing 1.weight, 1.bias; unexpected module.1.weight, module.1.bias; DataParallel
broken.py:make --dataset digits ; broken.py:1: invalid syntax
own.py:number --dataset digits ; 'int' object is not callable
own.py: --dataset digits ; has no attribute ''
:make --dataset digits ; Empty module name
.:make --dataset digits ; .:make cannot be had
own..x:make --dataset digits ; ModuleNotFoundError
own.py:one --dataset digits ; at least 2 classes apart, its logits have 1
own.py:linear --dataset digits --test-limit x ; --test-limit takes one whole number
own.py:linear --dataset digits --audit-images 0 ; --audit-images must be finite and at least 1
own.py:linear --dataset digits --epsilons 2/x ; --epsilons takes numbers
own.py:linear --dataset digits --attacks square0 ; unknown attack 'square0'
own.py:linear --dataset digits --out own.py ; own.py is a file
junk ; junk/checkpoints/x.pt is damaged
own.py ; name what returns the network
""",
    plot_regions: """
--out drawn ; nothing to do
--schemes zzz ; unknown scheme 'zzz'
--schemes explicit --out own.py ; cannot write to --out 'own.py'
--schemes explicit --spectrum nope.csv ; cannot read --spectrum 'nope.csv'
--schemes explicit --spectrum . ; cannot read --spectrum '.'
--schemes explicit --spectrum binary/config.json ; not a text file
--schemes adaptive ; has a region to draw
--table own.py ; own.py
--table nope.md ; cannot rewrite --table 'nope.md'
""",
    map_spectra: """
nope.pt ; there is no 'nope.pt'
junk ; junk/checkpoints/x.pt is damaged
own.py:linear --dataset digits ; convert takes a torchvision
own.py:resnet ; names no data set
own.py:resnet --shape 3,32 ; --shape takes channels,height,width, got '3,32'
own.py:resnet --shape a,b,c ; --shape takes whole numbers
own.py:resnet --shape 1,8,8 --images 1 ; own.py:resnet cannot take images of shape (1, 8, 8): RuntimeError: Given groups=1
own.py:resnet --shape 3,8,8 --images x ; --images takes one whole number
own.py:resnet --shape 3,8,8 --epsilon 0 ; --epsilon must be finite
own.py:resnet --shape 3,8,8 --scheme zzz ; unknown scheme 'zzz'
own.py:resnet --shape 3,8,8 --block 1 ; --block takes stage,block, got '1'
own.py:resnet --shape 3,8,8 --images 1 --block 9,9 ; there is no block 9,9
""",
    compare_solvers: """
nope ; nope holds no checkpoints
junk ; junk/config.json: No such file or directory
broken ; broken/config.json is damaged
empty ; empty/config.json is not that of a run of compare_schemes.py (schemes, dataset
junk --tol 0 ; --tol must be finite and at least 1e-12
junk --tol 1e-3,1e-4 ; --tol takes one number
junk --images x ; --images takes one whole number
""",
}
CASES = [(script, *line.split(" ; ")) for script, lines in LINES.items() for line in lines.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "own.py").write_text(OWN)
    (folder / "broken.py").write_text("def make(:\n")
    for name, config in {"junk": None, "broken": b"{", "empty": b"{}", "array": b"[1]", "binary": b"\xff\xfe"}.items():
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "checkpoints" / "x.pt").write_text("junk")
        if config is not None:
            (folder / name / "config.json").write_bytes(config)
    return folder


@pytest.mark.parametrize(
    ("script", "line", "sentence"), CASES, ids=[f"{script.__name__.split('.')[-1]} {line}" for script, line, _ in CASES]
)
def test_one_sentence_and_exit_code_2(script, line, sentence, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {*folder.rglob("*")}
    with pytest.raises(SystemExit) as stopped:
        script.main([*shlex.split(line), *([] if "--out" in line or script is compare_solvers else ["--out", "written"])])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and sentence in error and len(error.splitlines()) == 1
    assert {path for path in {*folder.rglob("*")} - before if "__pycache__" not in path.parts} <= {folder / "written"} and not (
        (folder / "written").exists() and any((folder / "written").iterdir())
    )
