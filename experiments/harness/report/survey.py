"""A survey of one network's dynamics: what is measured, its tables, its page."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from torch import Tensor, nn

import odenets
import stability
from experiments.harness.report import regions
from experiments.harness.report.drawing import FAINT, INK, PALETTE, STYLE, legend, panels
from experiments.harness.report.page import Figure, Page, Section, Table, Terms, Text, linked
from odenets.errors import InputError

DENSE_LIMIT, STEP_TOL = 512, 1e-6
LEVELS = np.arange(-4.0, 1.01, 0.5)  # of log10 of the smallest singular value
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

    scheme: odenets.Scheme
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


def tables(found: Survey, further: Sequence[stability.Predictor] = ()) -> dict[str, list[tuple]]:
    """{file name: rows, the header first}."""
    blocks: list[tuple] = [("stage", "block", "metric", "value")]
    spectra: list[tuple] = [("stage", "block", "image", "kind", "re", "im", "abs_R")]
    for b in found.blocks:
        blocks += [
            (b.stage, b.block, name, float(value.double().mean())) for name, value in stability.predictors(b, further).items()
        ]
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


def write_page(found: Survey, name: str, source: str, folder: Path, further: Sequence[stability.Predictor] = ()) -> None:
    """report.html in a folder, figures and tables beside it; further: predictors beside ours."""
    pseudo, scheme = found.fields[0], found.scheme
    values = "its eigenvalues" if pseudo.exact else "Ritz values"
    caption = CAPTIONS["pseudospectra"].format(values=values, kind=f"{pseudo.kind[:1].upper()}{pseudo.kind[1:]}.")
    stages = sorted({b.stage for b in found.blocks})
    points = {s: np.concatenate([b.ritz.numpy().ravel() for b in found.blocks if b.stage == s]) for s in stages}
    clouds = {f"stage {s}": (scheme, {str(s): np.stack([z.real, z.imag], 1)}) for s, z in points.items()}
    drawn = {
        "clouds": (regions.cloud_panels(clouds if scheme.has_R else {}), CAPTIONS["clouds"]),
        "growth": (_growth(found), CAPTIONS["growth"]),
        "pseudospectra": (_pseudospectra(found), caption),
    }
    measured = [(b, stability.predictors(b, further)) for b in found.blocks]
    names = list(dict.fromkeys(key for _, own in measured for key in own))
    rows = [
        (f"{b.stage}, {b.block}", *(f"{float(own[key].double().mean()):.3g}" if key in own else "" for key in names))
        for b, own in measured
    ]
    blocks = Table(
        "blocks",
        ("stage, block", *(key.replace("_", " ") if key in stability.PREDICTORS else key for key in names)),
        rows,
        "Means over the images, of hJ at the state that enters each block.",
    )
    notes = {
        key.replace("_", " "): f"{entry.meaning} ({entry.source})"
        for key, entry in stability.PREDICTORS.items()
        if key in names
    }
    files = Markup("Every number is in these files beside this page: {}.").format(
        linked(("blocks.csv", "spectra.csv", "growth.csv"))
    )
    Page(
        f"The dynamics of {name}",
        f"{found.scheme}, {source}, float64",
        list(sentences(found)),
        [
            Section("Figures", tuple(Figure(key, figure, text) for key, (figure, text) in drawn.items() if figure)),
            Section("Block by block", (blocks, Terms(notes), Text(files))),
        ],
    ).write(folder / "report.html")


@matplotlib.rc_context(STYLE)
def _growth(found: Survey) -> Drawing:
    """Measured, linearised and predicted growth along the network, a panel for each perturbation."""
    figure, axes = panels(len(found.growths), 3.9, sharey=True)
    styles = {"measured": ("-", PALETTE[0]), "linear": ((0, (4, 2)), PALETTE[1]), "predicted": (":", INK)}
    words = {"measured": "measured", "linear": "linearised network", "predicted": "R(hJ) from each stage's start"}
    for ax, (name, curve) in zip(axes, found.growths.items()):
        x, last = np.arange(len(curve.places)), curve.places[-1][0]
        for key, (style, colour) in styles.items():
            values = getattr(curve, key).numpy()
            marker = "o" if key == "measured" else ""
            ax.plot(x, np.median(values, 1), ls=style, color=colour, marker=marker, ms=4, zorder=3, label=words[key])
            if marker:
                ax.fill_between(x, values.min(1), values.max(1), color=colour, alpha=0.13, lw=0)
        labels = [
            "image" if s < 0 else "output" if s == last else f"stage {s}" if b < 0 else f"block {b}" for s, b in curve.places
        ]
        ax.set_xticks(x, labels, rotation=60, ha="right")
        for i, (stage, block) in enumerate(curve.places):
            if block < 0 <= stage < last:
                ax.axvline(i, color=FAINT, lw=0.6, zorder=1)
        ax.set(title=f"{name} perturbation", yscale="log")
    axes[0].set_ylabel(r"$\|\delta_n\|_2\,/\,\|\delta_0\|_2$")
    legend(figure, [Line2D([], [], ls=style, color=colour, label=words[key]) for key, (style, colour) in styles.items()])
    return figure


@matplotlib.rc_context(STYLE)
def _pseudospectra(found: Survey) -> Drawing:
    """Contours of the smallest singular value of zI - A with eigenvalues and field of values, for h J and for the step."""
    drawn = [("hJ", found.fields), ("Jacobian of the step", found.steps)]
    figure, axes = panels(2, 4.6)
    for ax, (name, pair) in zip(axes, drawn):
        if pair is None:
            ax.set_axis_off()
            continue
        pseudo, field = pair
        z, depth = pseudo.points[0].numpy(), np.log10(np.maximum(pseudo.smallest[0].numpy(), 1e-16))
        shades = ax.contourf(z.real, z.imag, depth, LEVELS, cmap="Blues_r", extend="both", alpha=0.85)
        ax.contour(z.real, z.imag, depth, LEVELS, colors="white", linewidths=0.5, linestyles="solid")
        values = pseudo.eigenvalues[0].numpy()
        ax.plot(values.real, values.imag, ".", color=PALETTE[1], ms=3.5, zorder=4)
        edge = field.points[0].numpy()
        edge = np.append(edge, edge[0])
        ax.plot(edge.real, edge.imag, "--", color=INK, lw=1.1)
        if name == "hJ":
            ax.axvline(0, color=INK, lw=0.8)
        else:
            circle = np.exp(1j * np.linspace(0, 2 * np.pi, 300))
            ax.plot(circle.real, circle.imag, color=INK, lw=0.8)
        ax.set(
            title=f"{name}, stage {found.place.stage}, block {found.place.block}",
            xlabel="Re z",
            ylabel="Im z",
            aspect="equal",
            xlim=_range(z.real, edge.real),
            ylim=_range(z.imag, edge.imag),
        )
        ax.grid(False)
        figure.colorbar(shades, ax=ax, shrink=0.8, label=r"$\log_{10}\,\sigma_{\min}(zI-A)$")
    return figure


def _range(*values: np.ndarray) -> tuple[float, float]:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)
