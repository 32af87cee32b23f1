"""The page of a sweep: the same weights at finer steps, training at each number of steps, weights run by another scheme."""

from collections.abc import Sequence

import numpy as np

from experiments.harness.report import figures, step_figures
from experiments.harness.report.arms import Comparison, standing
from experiments.harness.report.page import Figure, Section, Table
from experiments.harness.report.readings import FINER, SWAP, TRAINED, Convergence, Reading, convergences, readings
from experiments.harness.report.sentences import audited
from experiments.harness.statistics import Estimate
from experiments.harness.statistics.convergence import SLOWER, slope
from experiments.harness.words import count, interval, percent, points

KINKS = "across the kinks of a ReLU no scheme keeps more than order 2"
HISTORY = "the history of a multistep scheme crosses from one block's field into the next, which costs it its order"
RATES = (
    "Logits in float64, equations solved to 1e-10, against the exact flow of the same fields (rk4, 128 steps for each block), "
    "root mean square over images. The observed order is the slope over the finest steps whose error is ten times that of the "
    f"reference, one for each net, its interval Student's over seeds. The theory is of smooth fields: {KINKS}; {HISTORY}."
)
NOTES = {
    FINER: "The weights trained with the fewest steps, run with more; nothing is trained again. Differences are to the steps "
    "of training, on the same images: attacks are made on the net as it is run, and judged by a cold solve.",
    TRAINED: "A net trained for each number of steps, with the same weights at the start and the same batches. Differences are "
    "to the nets trained with the fewest.",
    SWAP: "Weights trained with one scheme (rows) and run with another (columns), attacked as they are run. Differences are "
    "to the scheme of training, on the same weights.",
}


_SHORT = {FINER: "finer steps", TRAINED: "trained so", SWAP: "swapped"}


def summary(found: Comparison) -> list[tuple[str, ...]]:
    """Every reading as rows of strings for a terminal, the first row being the header; differences of robust accuracy alone."""
    rows = [("question", *_HEADER), *((_SHORT[r.question], *_cells(found, r)) for r in readings(found))]
    return [(*row[:5], *row[7:]) for row in rows]


_HEADER = (
    "trained with",
    "run with",
    "clean, %",
    "95 % interval",
    "difference",
    "interval",
    "robust, %",
    "95 % interval",
    "difference",
    "interval",
    "verdict",
    "not converged, max %",
)


def _cells(found: Comparison, reading: Reading) -> tuple[str, ...]:
    arm, cells = reading.arm, []
    for eps in (0.0, found.middle):
        mean, gap = found.accuracy(arm, eps), reading.gaps.get(eps)
        cells += [percent(mean.value), interval(mean)] if mean else ["", ""]
        cells += [points(gap.estimate.value), interval(gap.estimate, "+")] if gap else ["", ""]
    gap = reading.gaps.get(found.middle)
    verdict = gap.verdict if gap else standing(arm is reading.against)
    dagger = arm.label.replace(arm.name, "")
    trained, run = _walk(arm.trained_with or arm.scheme, arm.trained_substeps), _walk(arm.scheme, arm.substeps)
    return f"{trained}{dagger}", run, *cells, verdict, percent(reading.untrusted)


def _walk(scheme: str, steps: int) -> str:
    return f"{scheme}, {count(steps, 'step')}"


def headline(found: Comparison) -> list[str]:
    """What was asked, answered in sentences: the rate first, then what happened to accuracies."""
    told = ["A smoke run: it exercises the program, and its numbers mean nothing."] if found.config.smoke else []
    told += [_converging(row) for row in convergences(found)]
    by_question: dict[str, list[Reading]] = {}
    for reading in readings(found):
        if reading.gaps:
            by_question.setdefault(reading.question, []).append(reading)
    for question, answers in by_question.items():
        if question == SWAP:
            told.append(_swapped(found, answers))
            continue
        # The finest of each scheme says where it leads; the rest stands in the table.
        last = {reading.arm.scheme: reading for reading in answers}
        told += [_moved(found, reading) for reading in last.values()]
    lost = max((reading for answers in by_question.values() for reading in answers), key=lambda r: r.untrusted, default=None)
    if lost and lost.untrusted:
        told.append(
            f"Not every net converges as it is run: {lost.arm.name} leaves up to {percent(lost.untrusted)} % of the images "
            "without an answer to trust. They count as wrong."
        )
    return [*told, *audited(found)]


def _converging(row: Convergence) -> str:
    estimate, order = row.observed.estimate, row.order
    stated = f"order {order} by theory" if order else "no order stated"
    name = f"{row.arm.scheme} at finer steps"
    if estimate is None:
        known = (
            f"observed order {row.observed.slopes[0]:.2f}" if row.observed.slopes else "no error above that of the reference"
        )
        return f"{name}: {known} ({stated}); an interval takes two seeds."
    rate = f"observed order {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] over {count(estimate.n, 'seed')}"
    why = KINKS if row.arm.behind.one_step else HISTORY
    return f"{name}: {rate} ({stated}): {row.verdict}{f' ({why})' * (row.verdict == SLOWER)}."


def _moved(found: Comparison, reading: Reading) -> str:
    arm, parts = reading.arm, []
    how = "read with" if reading.question == FINER else "trained with"
    for eps, what in ((0.0, "clean accuracy"), (found.middle, f"right under {found.attack_at(found.middle)}")):
        gap, before, after = reading.gaps.get(eps), found.accuracy(reading.against, eps), found.accuracy(arm, eps)
        if gap and before and after:
            said = gap.verdict if eps else gap.verdict.replace("robust", "accurate")
            parts.append(
                f"{what} {percent(before.value)} to {percent(after.value)} %, difference {points(gap.estimate.value)} "
                f"{interval(gap.estimate, '+')}: {said}"
            )
    return f"{arm.scheme} {how} {arm.substeps} steps instead of {reading.against.substeps}: {'; '.join(dict.fromkeys(parts))}."


def _swapped(found: Comparison, answers: Sequence[Reading]) -> str:
    gaps = [(reading, reading.gaps[found.middle]) for reading in answers if found.middle in reading.gaps]
    counted = {said: sum(gap.verdict == said for _, gap in gaps) for said in dict.fromkeys(gap.verdict for _, gap in gaps)}
    worst, gap = min(gaps, key=lambda pair: pair[1].estimate.value)
    verdicts = ", ".join(f"{number} {said}" for said, number in counted.items())
    return (
        f"Trained with one scheme and run with another, {count(len(gaps), 'pair')}, against the same weights run as trained "
        f"({found.attack_at(found.middle)}): {verdicts}. The lowest: {worst.arm.name}, "
        f"{points(gap.estimate.value)} points {interval(gap.estimate, '+')}."
    )


def sections(found: Comparison) -> list[Section]:
    """A section for each question that the run asks."""
    rates, told = convergences(found), readings(found)
    shown = []
    if rates:
        columns = ("scheme", "nets", "order by theory", "observed", "95 % interval", "verdict")
        table = Table("convergence", columns, [_rate(row) for row in rates], RATES)
        figure = Figure("convergence", step_figures.convergence(rates), step_figures.RATE)
        shown.append(Section("Does the network converge to its differential equation?", (figure, table)))
    if found.swept:
        figure = Figure("sweep", figures.sweep_figure(found), step_figures.SWEEP)
        shown.append(Section("Accuracy against the number of steps", (figure,)))
    for question in dict.fromkeys(reading.question for reading in told):
        own = [reading for reading in told if reading.question == question]
        matrix = (Figure("swap", step_figures.swap(found, own), step_figures.MATRIX),) if question == SWAP else ()
        cells = Table(_SHORT[question].replace(" ", "-"), _HEADER, [_cells(found, r) for r in own], NOTES[question], keys=2)
        shown.append(Section(question[0].upper() + question[1:], (*matrix, cells)))
    return shown


def _rate(row: Convergence) -> tuple[str, ...]:
    slopes, estimate = row.observed.slopes, row.observed.estimate
    value = f"{np.mean(slopes):.2f}" if slopes else ""
    held = f"[{estimate.low:.2f}, {estimate.high:.2f}]" if estimate else ""
    return row.arm.label, str(len(slopes)), str(row.order or ""), value, held, row.verdict


def files(found: Comparison) -> dict[str, list[tuple]]:
    """{file: its rows, the header first}: steps.csv, a row a reading and radius; convergence.csv, a row a net and step size."""
    measured = ("accuracy", "low", "high", "difference", "difference_low", "difference_high", "verdict", "seeds", "untrusted")
    rows: list[tuple] = [("question", "trained_with", "trained_substeps", "scheme", "substeps", "epsilon", *measured)]
    for reading in readings(found):
        arm = reading.arm
        for eps in (0.0, found.middle):
            mean, gap = found.accuracy(arm, eps), reading.gaps.get(eps)
            if mean:
                difference = (*_numbers(gap.estimate), gap.verdict) if gap else ("", "", "", standing(arm is reading.against))
                walk = (arm.trained_with or arm.scheme, arm.trained_substeps, arm.scheme, arm.substeps)
                rows.append((reading.question, *walk, eps, *_numbers(mean), *difference, len(arm.records), reading.untrusted))
    rates: list[tuple] = [("scheme", "trained_substeps", "seed", "substeps", "error", "uncertain", "observed_order")]
    for arm in found.arms:
        for record in arm.records:
            refined = record.refinement
            if refined:
                order = slope(refined.steps, refined.errors, refined.uncertain)
                shared = (arm.scheme, arm.trained_substeps, record.seed)
                rates += [(*shared, n, e, refined.uncertain, order) for n, e in zip(refined.steps, refined.errors)]
    return {"steps.csv": rows} | ({"convergence.csv": rates} if len(rates) > 1 else {})


def _numbers(estimate: Estimate) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in (estimate.value, estimate.low, estimate.high))
