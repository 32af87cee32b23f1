"""A survey of one network's dynamics: what is measured, its tables, its page."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

import odenets
import stability
from experiments.harness.report import figures, page
from experiments.harness.report import survey_figures as map_figures
from odenets.errors import InputError

DENSE_LIMIT, STEP_TOL = 512, 1e-6
CAPTIONS = {
    "clouds": "Where h\u03bb of each stage's blocks lies over the growth |R(z)| of the scheme. Dots are Ritz values: the "
    "outermost approximate eigenvalues, their density means nothing. Blue damps, sand amplifies, the bold line is "
    "|R| = 1.",
    "growth": "How a perturbation of the image grows on its way, median over the images and their range. Solid: measured. "
    "Dashed: the linearised network. Dotted: from the beginning of each stage by R(hJ) alone. Left random, right "
    "adversarial, both of the same size. Between stages the space changes, and with it what a norm measures.",
    "pseudospectra": "How far the Jacobian of one block is from normal, at the first image. Left: hJ; right: the "
    "Jacobian of the step, with the unit circle. Contours are log10 of the smallest singular value of "
    "zI \u2212 A, dots {values}, the dashed line is the edge of the field of values, whose rightmost point on "
    "the left is the logarithmic norm. {kind}",
}


@dataclass(frozen=True, eq=False)
class Survey:
    """What was measured. blocks: `BlockDynamics`. growths: {perturbation: `Growth`}. place: the block looked at closely.

    fields, steps: (pseudospectrum, numerical range) of h J and of the step's Jacobian there; steps None for multistep schemes.
    """

    scheme: object
    epsilon: float
    blocks: list
    growths: dict
    place: Any
    fields: tuple
    steps: tuple | None
    kreiss: Any
    departure: object
    explanation: object


def survey(
    net: nn.Module, images: Tensor, labels: Tensor | None, epsilon: float, block: tuple[int, int] | None = None
) -> Survey:
    """Measure a network in float64.

    Args:
        net: With `ODEStage`s; not changed.
        images, labels: (B, C, H, W) in [0, 1]; labels None stands for the network's own.
        epsilon: L-infinity radius of the adversarial perturbation; the random one has the same 2-norm.
        block: (stage, block) of the pseudospectra; None: the one with the largest log-norm.

    Raises:
        ValueError: No such block; what `stability.dynamics` refuses.
    """
    net, x = copy.deepcopy(net).double().eval(), images.double()
    scheme = next(iter(odenets.stages(net).values())).scheme
    blocks = stability.dynamics(net, x, dense_limit=DENSE_LIMIT, dense_samples=1)
    known = [(b.stage, b.block) for b in blocks]
    chosen = known[int(np.argmax([b.log_norm.mean() for b in blocks]))] if block is None else block
    if chosen not in known:
        raise InputError(f"there is no block {chosen[0]},{chosen[1]}; choose from {'; '.join(f'{s},{b}' for s, b in known)}")
    with odenets.tightened(net, STEP_TOL):
        if labels is None:
            with torch.no_grad():
                labels = net(x.clone()).argmax(1)
        adversarial = stability.pgd(net, x, labels, stability.Linf(epsilon), generator=torch.Generator().manual_seed(0)) - x
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype).to(x)
        noise *= (adversarial.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        growths = {"random": stability.growth(net, x, noise), "adversarial": stability.growth(net, x, adversarial)}
        place = stability.places(net, x[:1])[known.index(chosen)]

        def closely(f: Callable) -> tuple:
            return stability.pseudospectrum(f, place.state), stability.numerical_range(f, place.state)

        steps = closely(place.step) if scheme.one_step else None
        return Survey(
            scheme,
            epsilon,
            blocks,
            growths,
            place,
            closely(place.increment),
            steps,
            _kreiss(place, scheme),
            stability.departure_from_normality(place.increment, place.state),
            stability.explain(net, x),
        )


def _kreiss(place: Any, scheme: odenets.Scheme) -> Any:
    """Kreiss constant of the step, relative to its spectral radius where that exceeds 1."""
    if not scheme.one_step:
        return None
    radius = stability.spectrum(place.step, place.state, 1, tol=1e-6).values[:, 0].abs()
    return stability.kreiss_constant(place.step, place.state, domain="disc", threshold=(1 + 1e-6) * radius.clamp_min(1.0))


def tables(found: Survey) -> dict[str, list[tuple]]:
    """{file name: rows, the header first}."""
    blocks: list[tuple] = [("stage", "block", "metric", "value")]
    spectra: list[tuple] = [("stage", "block", "image", "kind", "re", "im", "abs_R")]
    for b in found.blocks:
        blocks += [(b.stage, b.block, name, float(value.double().mean())) for name, value in stability.predictors(b).items()]
        for kind, values, modulus in (("Ritz value", b.ritz, b.amplification), ("eigenvalue", b.eigenvalues, b.growth)):
            for image, row in enumerate([] if values is None else values):
                spectra += [
                    (b.stage, b.block, image, kind, z.real, z.imag, "" if modulus is None else modulus[image, i].item())
                    for i, z in enumerate(row.tolist())
                ]
    growth: list[tuple] = [("perturbation", "stage", "block", "image", "measured", "linear", "predicted")]
    for name, curve in found.growths.items():
        parts = (curve.measured, curve.linear, curve.predicted)
        growth += [
            (name, stage, block, image, *(float(part[i, image]) for part in parts))
            for i, (stage, block) in enumerate(curve.places)
            for image in range(curve.measured.shape[1])
        ]
    return {"blocks.csv": blocks, "spectra.csv": spectra, "growth.csv": growth}


def sentences(found: Survey) -> Iterator[str]:
    """What the survey says, in words."""
    yield str(found.explanation)
    for name, curve in found.growths.items():
        last, steps = curve.measured[-1].median(), _block_growth(curve)
        (stage, block), most = max(steps.items(), key=lambda pair: pair[1])
        yield (
            f"A perturbation that is {name} (\u03b5 = {found.epsilon:.3g}) reaches the output {last:.3g} times as large as "
            f"it was; of all blocks it grows most in stage {stage}, block {block}: {most:.3g} times (medians over images)."
        )
    if found.kreiss is not None:
        kind = "" if found.kreiss.exact else ", a lower bound"
        yield (
            f"Stage {found.place.stage}, block {found.place.block}: the Kreiss constant of its step is "
            f"{float(found.kreiss.values[0]):.3g}{kind}; 1 would mean that nothing grows beyond what eigenvalues say."
        )


def _block_growth(curve: Any) -> dict[tuple[int, int], float]:
    found = {}
    for i, (stage, block) in enumerate(curve.places):
        if block >= 0:
            found[stage, block] = float((curve.measured[i] / curve.measured[i - 1]).median())
    return found


def write_page(found: Survey, name: str, source: str, folder: Path) -> None:
    """Write report.html and figures/ into a folder."""
    pseudo = found.fields[0]
    values = "its eigenvalues" if pseudo.exact else "Ritz values"
    caption = CAPTIONS["pseudospectra"].format(values=values, kind=f"{pseudo.kind[:1].upper()}{pseudo.kind[1:]}.")
    drawn = [
        ("clouds", map_figures.clouds(found), CAPTIONS["clouds"]),
        ("growth", map_figures.growth(found), CAPTIONS["growth"]),
        ("pseudospectra", map_figures.pseudospectra(found), caption),
    ]
    parts: list[page.Figure] = []
    for key, figure, text in drawn:
        if figure:
            parts.append(page.Figure(figures.save(figure, folder / "figures", key), text, len(parts) + 1))
    names = list(dict.fromkeys(key for b in found.blocks for key in stability.predictors(b)))
    rows: list[tuple[str, ...]] = [("stage, block", *(key.replace("_", " ") for key in names))]
    for b in found.blocks:
        own = stability.predictors(b)
        cells = (f"{float(own[key].double().mean()):.3g}" if key in own else "" for key in names)
        rows.append((f"{b.stage}, {b.block}", *cells))
    notes = {
        key.replace("_", " "): f"{entry.meaning} ({entry.source})"
        for key, entry in stability.PREDICTORS.items()
        if key in names
    }
    links = Markup(", ").join(
        Markup('<a href="{0}">{0}</a>').format(file) for file in ("blocks.csv", "spectra.csv", "growth.csv")
    )
    sections = [
        page.Section("Figures", tuple(parts)),
        page.Section(
            "Block by block",
            (
                page.Table(rows, range(1, len(rows[0]))),
                page.Text("Means over the images, of hJ at the state that enters each block.", note=True),
                page.Terms(notes),
                page.Text(Markup("Every number is in these files beside this page: {}.").format(links)),
            ),
        ),
    ]
    page.write_page(
        folder / "report.html",
        f"The dynamics of {name}",
        f"{found.scheme}, {source}, float64",
        list(sentences(found)),
        sections,
    )
