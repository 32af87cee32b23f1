"""What the intervals and verdicts of a comparison are worth: simulated with the variances seen in docs/records.

    python experiments/benchmarks/coverage.py [--only crossed,split,family,...] [--draws 1000]
    python experiments/benchmarks/coverage.py --figure docs/images/power.png

Markdown tables for docs/statistics.md, or its figure: the table of power as curves. About 15 minutes on one core, the figure
one or two. The slow tests call the same functions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import ndtr, stdtr, stdtrit

from experiments.benchmarks.coverage_relation import claims, within
from experiments.harness.command import Parser, parse_choice, parse_one, run_cli, split_top_level
from experiments.harness.report.drawing import FAINT, MARKERS, PALETTE, STYLE
from experiments.harness.statistics.families import pointwise_level
from experiments.harness.statistics.looks import schedule
from experiments.harness.statistics.masks import gaps
from experiments.harness.statistics.moderation import between_seeds
from experiments.harness.statistics.two_way import by_split, interval, proportion, two_way
from experiments.harness.statistics.verdicts import EQUIVALENT, LESS, MARGIN, MORE, OPEN, verdict

SEEDS, IMAGES = (5, 10, 30), 450
Interval = tuple[NDArray, NDArray]  # (draws,) means and half-widths


@dataclass(frozen=True)
class World:
    """Two schemes whose nets see an image rightly where a latent margin is positive.

    rates: the two means of the margin. seed, image: standard deviations that the schemes share; own_seed, own_image: that they
    do not; rest: of each cell.
    """

    name: str
    rates: tuple[float, float]
    own_seed: float
    own_image: float
    seed: float = 0.05
    image: float = 1.25
    rest: float = 0.75

    def truth(self, scheme: int) -> float:
        """The accuracy of a scheme over all seeds and images."""
        parts = (self.seed, self.own_seed, self.image, self.own_image, self.rest)
        return float(ndtr(self.rates[scheme] / np.sqrt(np.square(parts).sum())))

    def draw(self, random: np.random.Generator, seeds: int, images: int = IMAGES, schemes: int = 2) -> NDArray:
        """(schemes, seeds, images) of right and wrong; beyond two they have the rates of those in turn."""
        shared = self.seed * random.standard_normal((seeds, 1)) + self.image * random.standard_normal(images)
        own = self.own_seed * random.standard_normal((schemes, seeds, 1))
        own = own + self.own_image * random.standard_normal((schemes, 1, images))
        cells = self.rest * random.standard_normal((schemes, seeds, images), dtype=np.float32)
        return np.resize(self.rates, schemes)[:, None, None] + shared + own + cells > 0


# Components of the difference in docs/records (standard deviation of a seed in points, of an image, of a cell): digits at 0.1
# 4.4, 0.08, 0.43; clean 0.4, 0.05, 0.11; cifar10 3.5, 0.06, 0.4; mnist 5 to 25, 0.1, 0.4.
WORLDS = (
    World("digits, radius 0.1", (0.5, 0.5), 0.14, 0.25),
    World("digits, clean", (3.5, 3.4), 0.1, 0.3),
    World("cifar10, radius 2/255", (-1.1, -1.0), 0.12, 0.25, image=1.5),
    World("mnist, radius 0.1", (0.1, 0.4), 0.6, 0.3),
    World("seeds alike", (0.5, 0.5), 0.0, 0.25, seed=0.0),
    World("images alike", (0.5, 0.5), 0.14, 0.0),
    World("images differ most", (0.5, 0.6), 0.03, 0.6),
)


def crossed(world: World, seeds: int, draws: int, seed: int = 0) -> NDArray:
    """Coverage of the interval of the difference and of the accuracy, of Student's over seeds, and the half-width in points."""
    random, inside = np.random.default_rng(seed), []
    difference = world.truth(1) - world.truth(0)
    for _ in range(draws):
        tables = world.draw(random, seeds)
        table = tables[1].astype(float) - tables[0]
        found, own = interval(two_way(table)), proportion(two_way(tables[1]))
        by_seed = table.mean(1)
        half = stdtrit(seeds - 1, 0.975) * by_seed.std(ddof=1) / seeds**0.5
        inside.append(
            (
                found.low <= difference <= found.high,
                own.low <= world.truth(1) <= own.high,
                abs(tables[1].mean(1).mean() - world.truth(1))
                <= stdtrit(seeds - 1, 0.975) * tables[1].mean(1).std(ddof=1) / seeds**0.5,
                abs(by_seed.mean() - difference) <= half,
                50 * (found.high - found.low),
                100 * (found.images or 0.0),
            )
        )
    return np.mean(inside, 0)


def split(share: float, seeds: int, draws: int, seed: int = 0, train: int = 1200, test: int = 450, pool: int = 1650) -> NDArray:
    """Coverage of the corrected interval, and of Student's, where `share` of the variance between seeds is the images'."""
    random, inside = np.random.default_rng(seed), []
    for _ in range(draws):
        effects = random.standard_normal(pool)
        drawn = np.array([random.choice(pool, test, replace=False) for _ in range(seeds)])
        values = effects[drawn].mean(1) + np.sqrt((1 / share - 1) / test) * random.standard_normal(seeds)
        found = interval(by_split(values, effects[drawn].var(1), train, test))
        half = stdtrit(seeds - 1, 0.975) * values.std(ddof=1) / seeds**0.5
        inside.append((found.low <= 0 <= found.high, abs(values.mean()) <= half))
    return np.mean(inside, 0)


def family(
    comparisons: int,
    correlation: float,
    seeds: int,
    draws: int,
    seed: int = 0,
    looks: tuple[int, ...] = (),
    level: float = 0.95,
) -> float:
    """Share of families of comparisons without differences in which one is found all the same, at any look."""
    random, false = np.random.default_rng(seed), 0
    shared, last = np.sqrt(correlation), looks[-1] if looks else seeds
    for _ in range(draws):
        values = shared * random.standard_normal((last, 1)) + np.sqrt(1 - correlation) * random.standard_normal(
            (last, comparisons)
        )
        for n in looks or (seeds,):
            known = values[:n]
            p = 2 * stdtr(n - 1, -np.abs(known.mean(0)) / known.std(0, ddof=1) * n**0.5)
            if p.min() < 1 - pointwise_level(known, level, looks, 2000):
                false += 1
                break
    return false / draws


def tables(schemes: int, seeds: int, draws: int, images: int = 300, seed: int = 0) -> tuple[float, float]:
    """(share of tables of alike schemes in which a difference to the first is found, middle half-width in points).

    The variances are those of digits at radius 0.1, the intervals those of a report.
    """
    random, false, halves = np.random.default_rng(seed), 0, []
    alike = World("alike", (0.2, 0.2), 0.14, 0.25)
    for _ in range(draws):
        masks = [dict(enumerate(table)) for table in alike.draw(random, seeds, images, schemes)]
        found = [gap.estimate for gap in gaps({scheme: (masks[scheme], masks[0]) for scheme in range(1, schemes)}).values()]
        false += any(not one.low <= 0 <= one.high for one in found)
        halves.append(50 * np.median([one.high - one.low for one in found]))
    return false / draws, float(np.mean(halves))


def moderated(schemes: int, seeds: int, draws: int, unlike: float = 1, apart: float = 0, seed: int = 0) -> float:
    """Share of tables of schemes without differences in which one is found by variances told by one another, images aside.

    unlike: deviation of half of the schemes, that of the others being 1. apart: of an effect of the seed that they alone have.
    """
    random, false, other = np.random.default_rng(seed), 0, np.arange(schemes) >= schemes // 2
    for _ in range(draws):
        values = np.where(other, unlike, 1.0)[:, None] * random.standard_normal((schemes, seeds))
        values += apart * other[:, None] * random.standard_normal(seeds)
        known = between_seeds(values)
        half = [stdtrit(one.degrees, 1 - 0.025 / (schemes - 1)) * (one.variance / seeds) ** 0.5 for one in known]
        false += bool((np.abs((values[1:] - values[0]).mean(1)) > half).any())
    return false / draws


def stopping(
    difference: float, deviation: float, draws: int, most: int = 30, margin: float = 100 * MARGIN, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """{design: (share with a verdict, mean number of seeds, share with a false one)}; difference and deviation in points."""
    values = difference + deviation * np.random.default_rng(seed).standard_normal((draws, most))
    looks = schedule(most)
    each = 1 - pointwise_level(np.random.default_rng(1).standard_normal((most, 1)), looks=looks)
    designs: dict[str, tuple[Sequence[int], Callable[[int], Interval]]] = {
        "looks fixed before": (looks, lambda n: _student(values[:, :n], each)),
        "confidence sequence": (range(3, most + 1), lambda n: t_sequence(values[:, :n])),
        "looking anyway": (looks, lambda n: _student(values[:, :n], 0.05)),
        "one look at the end": ((most,), lambda n: _student(values[:, :n], 0.05)),
    }
    return {name: _stopped(difference, margin, draws, *design) for name, design in designs.items()}


def t_sequence(values: NDArray, alpha: float = 0.05, effect: float = 1.0) -> Interval:
    """Half-widths of an anytime-valid t interval of (draws, n): valid at all n together.

    A Gaussian mixture over effect sizes, of standard deviation `effect`, of the likelihood ratio of the t statistic.

    Source: Wang & Ramdas (2024), Electronic Journal of Statistics 18, 2245-2291; the closed form is Gonen et al. (2005),
    American Statistician 59.
    """
    n = values.shape[1]
    wider = 1 + n * effect**2
    k = (np.sqrt(wider) / alpha) ** (2 / n)
    if k >= wider:
        return values.mean(1), np.full(len(values), np.inf)
    return values.mean(1), values.std(1, ddof=1) * np.sqrt((n - 1) / n * (k - 1) / (1 - k / wider))


def _student(values: NDArray, alpha: float) -> Interval:
    n = values.shape[1]
    return values.mean(1), stdtrit(n - 1, 1 - alpha / 2) * values.std(1, ddof=1) / n**0.5


def _stopped(
    difference: float, margin: float, draws: int, looks: Sequence[int], interval_at: Callable[[int], Interval]
) -> tuple[float, float, float]:
    ended, false, seeds = np.zeros(draws, bool), np.zeros(draws, bool), np.full(draws, max(looks))
    for n in looks:
        mean, half = interval_at(n)
        low, high = mean - half, mean + half
        equal = (low > -margin) & (high < margin)
        more, less = (low > 0) & ~equal, (high < 0) & ~equal
        new = ~ended & (equal | more | less)
        seeds[new] = n
        wrong = (more & (difference <= 0)) | (less & (difference >= 0)) | (equal & (abs(difference) >= margin))
        false |= new & wrong
        ended |= new
    return float(ended.mean()), float(seeds.mean()), float(false.mean())


def verdicts(world: World, seeds: int, draws: int, seed: int = 0, margin: float = MARGIN) -> NDArray:
    """(share with a verdict, share with a false one) of the interval over seeds and images."""
    random, found = np.random.default_rng(seed), []
    difference = world.truth(1) - world.truth(0)
    for _ in range(draws):
        tables = world.draw(random, seeds)
        said = verdict(interval(two_way(tables[1].astype(float) - tables[0])), margin)
        right = {MORE: difference > 0, LESS: difference < 0, EQUIVALENT: abs(difference) < margin, OPEN: True}[said]
        found.append((said != OPEN, not right))
    return np.mean(found, 0)


POWER_SEEDS, POWER_GAPS = (5, 8, 12, 20, 30, 60), (0.0, 0.04, 0.08, 0.12, 0.2, 0.32)  # gaps of the latent margin
Power = list[tuple[float, dict[int, NDArray]]]


def power(draws: int) -> Power:
    """[(difference in points, {seeds: (share with a verdict, share with a false one)})], variances of digits at radius 0.1."""
    worlds = [World("", (0.5, 0.5 + gap), 0.14, 0.25) for gap in POWER_GAPS]
    return [
        (round(100 * (world.truth(1) - world.truth(0)), 1), {seeds: verdicts(world, seeds, draws) for seeds in POWER_SEEDS})
        for world in worlds
    ]


@matplotlib.rc_context(STYLE)
def power_figure(draws: int) -> Figure:
    """Left: how often a comparison has a verdict, by its seeds. Right: the seeds of a run that ends when it is clear."""
    figure = Figure(figsize=(10, 3.8))
    left, right = figure.subplots(1, 2)
    curves = power(draws)
    for (difference, found), colour, marker in zip(curves, PALETTE, MARKERS):
        share = [100 * found[seeds][0] for seeds in POWER_SEEDS]
        left.plot(POWER_SEEDS, share, color=colour, marker=marker, label=f"{difference:g}")
    false = [100 * max(found[seeds][1] for _, found in curves) for seeds in POWER_SEEDS]
    left.plot(POWER_SEEDS, false, ":", color=FAINT, label="false, at most")
    left.axhline(80, color=FAINT, lw=0.8)
    left.set(xscale="log", title="One look, at a fixed number of seeds", xlabel="seeds", ylabel="comparisons with a verdict, %")
    left.set_xticks(POWER_SEEDS, [str(seeds) for seeds in POWER_SEEDS])
    left.minorticks_off()
    left.set_xlim(4.5, 170)  # room for the legend
    left.legend(title="difference, points", fontsize=7, title_fontsize=7, loc="center right")
    differences = (0, 1, 2, 3, 5, 8)
    for deviation, line in ((2.5, "-"), (5.0, "--")):
        stopped = [stopping(difference, deviation, 20 * draws) for difference in differences]
        for design, colour in zip(("looks fixed before", "confidence sequence"), PALETTE):
            label = f"{design}, {deviation:g} points a seed"
            right.plot(differences, [row[design][1] for row in stopped], line, color=colour, marker="o", label=label)
    right.set(title="Until it is clear, at most 30 seeds", xlabel="difference, points", ylabel="seeds, mean", ylim=(0, 31))
    right.legend(fontsize=7)
    return figure


def _show(console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    console.print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}", markup=False, highlight=False)
    for row in rows:
        cells = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        console.print(f"| {' | '.join(cells)} |", markup=False, highlight=False)


def _tables(draws: int) -> dict[str, Callable[[], tuple[str, Sequence[str], Iterable[Sequence[object]]]]]:
    """{part: () -> (title, header, rows)}."""
    return {
        "crossed": lambda: (
            "Coverage of 95 % intervals over seeds and images",
            ("variances of", "seeds", "difference", "accuracy", "by seeds: difference", "by seeds: accuracy", "+- points"),
            (
                (world.name, seeds, *found[[0, 1, 3, 2]].tolist(), round(found[4], 1))
                for world in WORLDS
                for seeds in SEEDS
                if len(found := crossed(world, seeds, draws))
            ),
        ),
        "split": lambda: (
            "Coverage where each seed draws its own split, 1200 training and 450 test images",
            ("images' share of the variance between seeds", "seeds", "corrected", "Student's"),
            ((share, seeds, *split(share, seeds, draws).tolist()) for share in (1.0, 0.5, 0.1) for seeds in SEEDS),
        ),
        "family": lambda: (
            "Families without a difference in which one is found, in looks at 5, 8, 12, 20, 30 seeds: at any of them",
            ("comparisons", "correlation", "5 seeds", "10 seeds", "30 seeds", "looks"),
            (
                (n, r, *(family(n, r, seeds, draws) for seeds in SEEDS), family(n, r, 0, draws // 2, looks=schedule(30)))
                for n, r in ((1, 0.0), (4, 0.8), (12, 0.5))
            ),
        ),
        "tables": lambda: (
            "Tables of schemes that are alike, by seeds: share in which one differs from the first / half an interval, points",
            ("schemes", *(f"{seeds} seeds" for seeds in (2, 3, 5, 8))),
            (
                (n, *("{:.3f} / {:.1f}".format(*tables(n, seeds, max(1, 4 * draws // (n + 6)))) for seeds in (2, 3, 5, 8)))
                for n in (2, 3, 9, 10, 34)
            ),
        ),
        "moderated": lambda: (
            "Variances told by one another, tables without a difference in which one is found (Bonferroni), images aside",
            ("schemes", "half of them", "5 seeds", "8 seeds"),
            (
                (
                    n,
                    f"deviation {unlike}, effect of the seed {apart}",
                    *(moderated(n, s, 2 * draws, unlike, apart) for s in (5, 8)),
                )
                for n in (10, 34)
                for unlike, apart in ((1, 0), (5, 0), (1, 6))
            ),
        ),
        "stopping": lambda: (
            "Until it is clear, at most 30 seeds, margin 2 points: share with a verdict / mean seeds / false verdicts",
            ("difference, points", "deviation of a seed", *stopping(0, 1, 10)),
            (
                (d, s, *(f"{a:.2f} / {b:.1f} / {c:.3f}" for a, b, c in stopping(d, s, 20 * draws).values()))
                for s in (2.5, 5.0)
                for d in (0, 1, 2, 3, 5, 8)
            ),
        ),
        "power": lambda: (
            "Verdicts at a fixed number of seeds, variances of digits at radius 0.1: share with one / with a false one",
            ("difference, points", *(f"{seeds} seeds" for seeds in POWER_SEEDS)),
            (
                (difference, *("{:.2f} / {:.3f}".format(*found[seeds]) for seeds in POWER_SEEDS))
                for difference, found in power(draws // 2)
            ),
        ),
        "relation": lambda: (
            "Eight predictors, 5 seeds: studies with one supported, by how strongly robustness follows what they follow",
            ("schemes", "not at all", "share of predictors at 0.6", "at 0.9", "coverage within schemes"),
            (
                (
                    n,
                    claims(n, 0.0, draws // 5)[0],
                    *(claims(n, s, draws // 20)[1] for s in (0.6, 0.9)),
                    within(n, 8, 0.5, 0.3, draws),
                )
                for n in (8, 12, 29)
            ),
        ),
    }


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser(prog="coverage.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", help="of crossed, split, family, stopping, power, relation; default: all")
    parser.add_argument("--draws", default="1000", help="simulated comparisons for each figure")
    parser.add_argument("--figure", metavar="PNG", help="draw the curves of power into this file, and simulate nothing else")
    args = parser.parse_args(argv)
    draws = parse_one(args.draws, "--draws", int, 100)
    if args.figure:
        power_figure(draws // 2).savefig(args.figure, dpi=120)
        return 0
    tables, console = _tables(draws), Console(width=200)
    for name in split_top_level(args.only or ",".join(tables)):
        parse_choice(name, "--only", tuple(tables))
        _show(console, *tables[name]())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
