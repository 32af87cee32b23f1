"""How many evaluations does one implicit Euler step of a trained block take, and how few could any Krylov method take?

    python experiments/compare_solvers.py runs/compare
    python experiments/compare_solvers.py runs/compare --tol 1e-5 --images 64 --out solvers.csv

For every checkpoint of a run, at the states that test images reach under the scheme trained with: median and 90th percentile
over images of the evaluations of f of each solver from a cold start, the share of images unsolved, and beside them the steps
that GMRES needs for the linear system with the Jacobian at the root itself. A method that learns the Jacobian from residuals
alone cannot do much better than that: it is the floor. Two ways below it: a warm start, from the root of the same image one
step of PGD (20 steps, the run's middle radius) before, and a preconditioner, the inverse of the mean Jacobian at the roots of
training images (dense, so that it shows what any such knowledge of the block could gain). Minutes for the default run.

    python experiments/compare_solvers.py runs/compare --roots --scheme implicit_euler

asks whether a net's answers hang on the solver instead: how many of the test images, and of these after PGD (20 steps, the
run's middle radius), get other logits (by 2 % of their spread) or another class when their equations are solved cold at 1e-4,
1e-5 or 1e-7 than at the judge's 1e-6, float32, or at 1e-8 in float64; how many of those the judge recognises
(`stability.path_dependent`), how many it distrusts in all, and what recognising them costs beside the cold solve.
"""

import copy
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import odenets
import stability
from experiments.harness.command import Parser, parse_one, run_cli
from experiments.harness.run.case import load_data
from experiments.harness.run.checkpoints import load_net
from experiments.harness.run.config import RunConfig
from experiments.harness.run.folder import read_config
from experiments.harness.training.data import Split
from odenets.errors import InputError
from odenets.solve.krylov import gmres
from odenets.solve.nonlinear import SOLVERS, Broyden
from odenets.solve.products import jacobian_products
from odenets.solve.rows import row_norm
from odenets.solve.solution import Solution
from stability import jacobian
from stability.masking.roots import continued

DENSE = 2048  # unknowns up to which a dense preconditioner is formed
REFERENCES = 24  # images whose Jacobians it averages
LADDER = (1e-4, 1e-5, 1e-7)  # tolerances of further cold solves
ROOT_COLUMNS = (
    "trained with",
    "seed",
    "images",
    "count",
    "unsolved",
    "logits differ",
    "class differs",
    "of these distrusted",
    "distrusted",
    "iterations, max",
    "evaluations, cold",
    "evaluations, continuation",
)
NEEDED = ("schemes", "dataset", "data_dir", "download", "train_limit", "test_limit", "audit_epsilon", "epochs")  # of a run
COLUMNS = ("trained with", "seed", "stage", "block", "method", "median", "90 %", "unsolved")


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("compare_solvers.py", __doc__)
    parser.add_argument("run", help="folder of a run of compare_schemes.py")
    parser.add_argument("--tol", default="1e-3", help="relative residual of each image")
    parser.add_argument("--images", default="256", help="test images")
    parser.add_argument("--roots", action="store_true", help="count answers that hang on the path of the solver instead")
    parser.add_argument("--scheme", help="with --roots: read every net with this scheme; default: the one trained with")
    parser.add_argument("--out", help="write the table to this CSV file too")
    args = parser.parse_args(argv)
    if args.scheme:
        odenets.get_scheme(args.scheme)  # before the first net is read
    tol, images = parse_one(args.tol, "--tol", float, 1e-12), parse_one(args.images, "--images", int, 1)
    folder = Path(args.run)
    paths = sorted(folder.glob("checkpoints/*.pt"))
    if not paths:
        raise InputError(f"{args.run} holds no checkpoints; give the folder of a run of compare_schemes.py")
    entry = read_config(folder / "config.json")
    missing = [key for key in NEEDED if key not in entry]
    if missing:
        raise InputError(f"{folder / 'config.json'} is not that of a run of compare_schemes.py ({', '.join(missing)} missing)")
    config = RunConfig.from_json(entry)
    console = Console()
    rows, columns = [], ROOT_COLUMNS if args.roots else COLUMNS
    title = (
        "Answers that hang on the path of the solver"
        if args.roots
        else f"Evaluations of f for one implicit Euler step, relative residual {tol:g}"
    )
    for path in track(paths, description="checkpoints", console=console, transient=True):
        net, saved = load_net(path)
        data = load_data(config, saved["seed"])  # each seed may have a split of its own
        test, reference = data.test.first(images), data.train.images[:REFERENCES]
        if args.roots:
            rows += [(saved["scheme"], saved["seed"], *row) for row in _roots(net, test, config.audit_epsilon, args.scheme)]
            continue
        moved = stability.pgd(
            net,
            test.images,
            test.labels,
            stability.Linf(config.audit_epsilon / 8),
            steps=1,
            step_size=config.audit_epsilon / 8,
            random_start=False,
        )
        for place, near, typical in zip(*(stability.places(net, images) for images in (test.images, moved, reference))):
            measured = _measure(place.increment, place.state, near.state, typical.state, tol)
            rows += [(saved["scheme"], saved["seed"], place.stage, place.block, *row) for row in measured]
    table = Table(*columns, box=SIMPLE_HEAD, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    (console if console.is_terminal else Console(width=120)).print(table)
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    return 0


@torch.no_grad()
def _measure(increment: Callable, x: Tensor, near: Tensor, typical: Tensor, tol: Any) -> Iterator[tuple]:
    """Rows (method, median, 90 %, unsolved) for z = increment(x + z).

    Args:
        increment: (B, ...) -> (B, ...), h f.
        x: States, (B, ...). near: where a step of PGD takes them. typical: states of other images.
        tol: Relative residual.
    """

    def residual(z: Tensor, x: Tensor) -> Tensor:
        return z - increment(x + z)

    def run(solver: Any, x: Tensor, guess: Tensor | None = None, function: Callable = residual) -> Solution:
        floor = 4 * torch.finfo(x.dtype).eps * row_norm(x.flatten(1))
        guess, scale = torch.zeros_like(x) if guess is None else guess, row_norm(increment(x).flatten(1))
        return solver(function, guess, (x,), scale, floor)

    solvers: dict[str, Any] = {**SOLVERS}
    solvers.pop("newton")  # its iterations hide a Krylov process each
    for name, solver in solvers.items():
        yield name, *_summary(run(solver(tol=tol), x), 1)
    exhaustive = Broyden(tol=tol, max_iterations=300, memory=300)
    root = run(exhaustive, x).value
    product, _ = jacobian_products(lambda z: residual(z.view(x.shape), x).flatten(1), root.flatten(1))
    yield "GMRES, Jacobian at the root", *_summary(gmres(product, increment(x).flatten(1), tol, 100, memory=100), 0)
    yield "broyden, warm", *_summary(run(Broyden(tol=tol), near, run(Broyden(tol=tol), x).value), 1)
    if x[0].numel() <= DENSE:
        n = x[0].numel()
        mean = sum(
            jacobian(increment, y[None]) @ np.eye(n, dtype=np.float32) for y in typical + run(exhaustive, typical).value
        ) / len(typical)
        inverse = torch.linalg.inv(torch.eye(n) - torch.from_numpy(mean)).to(x)

        def preconditioned(w: Tensor, x: Tensor) -> Tensor:
            return residual((w.flatten(1) @ inverse.T).view(w.shape), x)

        yield "broyden, preconditioned", *_summary(run(Broyden(tol=tol), x, function=preconditioned), 1)


def _roots(net: nn.Module, test: Split, epsilon: float, scheme: str | None) -> Iterator[tuple]:
    """Rows of `ROOT_COLUMNS` after the seed, of the images and of adversarial ones; none where nothing nonlinear is solved."""
    if scheme:
        odenets.set_scheme(net, scheme)
    hanging = stability.path_dependent(net, test.images)
    if hanging is None:
        return
    yield ("clean", *_disagreements(net, test.images, hanging))
    moved = stability.pgd(net, test.images, test.labels, stability.Linf(epsilon))
    hanging = stability.path_dependent(net, moved)
    assert hanging is not None  # as above: the net is the same
    yield ("adversarial", *_disagreements(net, moved, hanging))


@torch.no_grad()
def _disagreements(net: nn.Module, x: Tensor, hanging: Tensor) -> tuple:
    """How often cold solves disagree, and how many of these images are among the hanging (B,) ones."""
    reference, solved, cold, most = _solved(net, x, 1e-6)
    spread, other, classes = reference.amax(1) - reference.amin(1), torch.zeros_like(hanging), torch.zeros_like(hanging)
    for logits, converged, *_ in [
        *(_solved(net, x, tol) for tol in LADDER),
        _solved(copy.deepcopy(net).double(), x.double(), 1e-8),
    ]:
        both = solved & converged
        other |= both & ((logits - reference).abs().amax(1) > 0.02 * spread)
        classes |= both & (logits.argmax(1) != reference.argmax(1))
    with continued(net):
        again = _solved(net, x, 1e-6)[2]
    counts = (int(values.sum()) for values in (~solved, other, classes, other & hanging, hanging))
    return len(x), *counts, most, round(cold), round(again)


def _solved(net: nn.Module, x: Tensor, tol: float) -> tuple[Tensor, Tensor, float, int]:
    """At a tolerance: logits in float64, (B,) converged, evaluations for each image, most iterations of a solve."""
    with odenets.tightened(net, tol):
        logits, stats = net(x).double(), [stage.stats for stage in odenets.stages(net).values()]
    solved = odenets.converged(net)
    assert solved is not None  # asked of nets alone whose roots hang on something
    return (
        logits,
        solved,
        sum(part.evaluations for part in stats),
        max(int(solution.iterations.max()) for part in stats for solution in part.solutions),
    )


def _summary(solution: Solution, first: int) -> tuple[int, int, str]:
    counts = (solution.iterations + first).double()
    unsolved = 1 - solution.converged.double().mean().item()
    return round(counts.median().item()), round(counts.quantile(0.9).item()), f"{100 * unsolved:.1f} %"


if __name__ == "__main__":
    raise SystemExit(main())
