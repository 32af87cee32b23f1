"""What evaluate.py shows: its records merged by network, a table and sentences in the terminal, a page."""
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.harness.report import figures, statistics
from experiments.harness.report.page import audit_rows, definitions, escape, table, write_page
from experiments.harness.report.sentences import interval, percent, points
from experiments.harness.report.words import radius
from experiments.harness.run.folder import audit_verdict


def key(record):
    """(network, attack, epsilon, gradient) of the one thing that a record measured."""
    if record["audit"]:
        return record["network"], "audit", record["audit"]["epsilon"], "exact"
    (measurement,) = record["measurements"]
    return record["network"], measurement["attack"], measurement["epsilon"], measurement["gradient"]


def merged(records, names):
    """One record a network, in the order of `names`, its measurements followed by the worst case at each radius."""
    result = []
    for name in names:
        own = [record for record in records if record["network"] == name]
        measurements = [measurement for record in own for measurement in record["measurements"]]
        audit = next((record["audit"] for record in own if record["audit"]), None)
        result.append({**own[0], "audit": audit, "measurements": measurements + statistics.worst_over(measurements)})
    return result


def rows(records):
    """The table as rows of strings, header first: exact and detached gradient side by side, a network that fails marked."""
    found = [("network", "attack", "\u03b5", "right, %", "95 % interval", "detached, %", "detached \u2212 exact, points",
              "untrusted, %")]
    for record in records:
        by = {(m["epsilon"], m["attack"], m["gradient"]): m for m in record["measurements"]}
        shown = sorted((at for at in by if at[2] != "detached"), key=lambda at: (at[0], at[1] == statistics.WORST))
        for epsilon, attack, gradient in shown:
            own, detached = by[epsilon, attack, gradient], by.get((epsilon, attack, "detached"))
            estimate = statistics.wilson(own["correct"], own["total"])
            compared = ("", "")
            if detached:
                compared = (percent(detached["correct"] / own["total"]),
                            points((detached["correct"] - own["correct"]) / own["total"]))
            name = {"clean": "no attack", statistics.WORST: "worst of all"}.get(attack, attack)
            found.append((marked(record), name, radius(epsilon) if epsilon else "", percent(estimate.value),
                          interval(estimate), *compared, percent(own["untrusted"] / own["total"])))
    return found


def marked(record):
    """The name of a network, with a dagger where it failed its audit."""
    return f"{record['network']} \u2020" if audit_verdict(record) == "failed" else record["network"]


def sentences(config, records):
    """For each network what it withstands at the middle radius, and whether that can be believed."""
    found = []
    for record in records:
        measured = {epsilon: masks for epsilon in sorted({m["epsilon"] for m in record["measurements"]})
                    if (masks := [statistics.correct_mask(m) for m in record["measurements"] if m["epsilon"] == epsilon])}
        clean, eps = np.logical_and.reduce(measured[0.0]), statistics.middle([e for e in measured if e])
        text = f"{marked(record)}: {percent(clean.mean())} % of {len(clean)} images right without an attack"
        if eps is not None:
            mask = np.logical_and.reduce(measured[eps])
            text += (f", {percent(mask.mean())} % under every attack at \u03b5 = {radius(eps)} (95 % interval "
                     f"{interval(statistics.wilson(int(mask.sum()), len(mask)))})")
        failed = [check["name"] for check in (record["audit"] or {"checks": []})["checks"] if check["passed"] is False]
        told = {"passed": "It passed its audit.", "not audited": "It was not audited: gradients may hide more.",
                "failed": f"It failed its audit ({', '.join(failed)}): its robustness may be an artefact."}
        found.append(f"{text}. {told[audit_verdict(record)]}")
    return found


def show(config, records, console):
    """The table and the sentences, in the terminal; wide enough for a pipe."""
    console = console if console.is_terminal else Console(width=140)
    header, *body = rows(records)
    kept = [index for index in range(len(header)) if index < 4 or any(row[index] not in ("", "0.0") for row in body)]
    shown = Table(title=f"Accuracy, {config['threat']} ball, intervals over images", box=box.SIMPLE_HEAD, pad_edge=False)
    for index in kept:
        shown.add_column(header[index], overflow="fold", no_wrap=index > 0, justify="left" if index < 2 else "right")
    for before, row in zip([header, *body], body):
        shown.add_row(*("" if index == 0 and row[0] == before[0] else row[index] for index in kept))
    console.print(shown)
    for sentence in sentences(config, records):
        console.print(sentence, markup=False, highlight=False)


def write(config, records, path):
    """The page, and its figure as PNG into figures/ beside it."""
    write_page(path, "How robust is this network?", f"{config['network']} on {config['dataset']}, {config['threat']} ball",
               sentences(config, records), [_accuracy(records), _figure(config, records, Path(path).parent / "figures"),
                                            _audits(records), _protocol(config)])


def _accuracy(records):
    note = ("Every image was classified again by a cold solve at tolerance 10<sup>\u22126</sup>; <b>untrusted</b> ones, whose "
            "equations did not converge there, count as wrong. Attacks follow the exact gradient of the function computed; "
            "<b>detached</b> is what the gradient of the explicit predictor would have let one believe. <b>Worst of all</b>: "
            "right under every attack, along every gradient. Wilson's intervals, over another draw of test images. Robust "
            "accuracy is an upper bound: another attack may break more. \u2020 failed its audit.")
    return f"<h2>Accuracy</h2>{table(rows(records), numbers=range(2, 8))}<p class=note>{note}</p>"


def _figure(config, records, folder):
    if not config["epsilons"]:
        return ""
    # To the figure a network is what a scheme is in a comparison.
    own = [{**record, "scheme": record["network"]} for record in records]
    figure = figures.accuracy_figure({**config, "schemes": [record["network"] for record in records]}, own)
    source = figures.save(figure, folder, "accuracy")
    return (f'<h2>Figure</h2><figure><img src="{source}" alt="Accuracy against the radius of the attack"><figcaption>'
            "Accuracy under the worst of the attacks, bands are 95 % intervals over images; dashed along the detached gradient."
            "</figcaption></figure>")


def _audits(records):
    checks = [row for record in records if record["audit"] for row in audit_rows(marked(record), record["audit"])]
    if not checks:
        return "<h2>Audit</h2><p>Nothing was audited: whether gradients are masked is open.</p>"
    header = ("network", "check", "verdict", "reason")
    return f"<h2>Audit: is the robustness real?</h2>{table([header, *checks], numbers=())}"


def _protocol(config):
    shown = {"Data": f"{config['dataset']}, {config['data']['test']} test images", "Attacks": ", ".join(config["attacks"]),
             "Radii": ", ".join(map(radius, config["epsilons"])), "Audit": config["audit"],
             **{name: f"SHA-256 of the weights {digest[:16]}" for name, digest in config["weights"].items()},
             **{name: str(value) for name, value in config["environment"].items() if value is not None}}
    return f"<h2>Protocol</h2>{definitions(shown)}<pre>{escape(config['command'])}</pre>"
