"""Audits on a page: what fails stands open, what passes is folded away."""

from collections.abc import Iterable
from itertools import groupby

from experiments.harness.report.page import Folded, Section, Table, Text
from experiments.harness.run.schema import CHEAP, CHEAP_IMAGES, Record
from experiments.harness.words import count, listed

VERDICTS = {True: "passes", False: "fails", None: "not applicable"}
COLUMNS = ("net", "check", "verdict", "reason")


def audit_section(nets: Iterable[tuple[str, Record]]) -> Section:
    """The audits of named nets: every check of the first net of a name, of the others those that fail."""
    failing, passing, audits = [], [], []
    for name, group in groupby(nets, key=lambda pair: pair[0]):
        audited = [(record, record.audit) for _, record in group if record.audit]
        clean = dict[str, list[int]]()
        audits += [audit for _, audit in audited]
        for index, (record, audit) in enumerate(audited):
            label = record.network and name or f"{name}, seed {record.seed}"
            checks = [(label, c.name.replace("_", " "), VERDICTS[c.passed], c.reason) for c in audit.checks]
            failing += [row for row in checks if row[2] == VERDICTS[False]]
            passing += [row for row in checks if row[2] != VERDICTS[False] and not index]
            if index and audit.passed:
                every = "the cheap ones" if audit.extent == CHEAP else "all that apply"
                clean.setdefault(every, []).append(record.seed)
        for every, seeds in clean.items():
            passing.append((f"{name}, {count(len(seeds), 'more seed')}", every, VERDICTS[True], f"seeds {listed(seeds)}"))
    if not audits:
        return Section("Audit", (Text("Nothing was audited: whether gradients are masked is open."),))
    cheap = (
        " The cheap ones take seconds: is the net deterministic, is its gradient there and exact, are its equations "
        "solved, at the root connected to the state, and does a tighter tolerance change nothing; on "
        f"{CHEAP_IMAGES} images, clean and under a short PGD."
        if any(audit.extent == CHEAP for audit in audits)
        else ""
    )
    text = Text(
        "An audit tries to expose gradients that hide adversarial images instead of removing them. "
        f"{sum(audit.passed for audit in audits)} of {count(len(audits), 'net')} pass. What has a net that fails is marked "
        "\u2020 wherever it appears. Every check that fails stands here, and what passes for the first net of each scheme; "
        f"all of them, with figures and thresholds, are in audit.csv.{cheap}"
    )
    opened = (Table("audit-failed", COLUMNS, failing, keys=2),) if failing else ()
    folded = Table("audit-passed", COLUMNS, passing, keys=2)
    summary = f"{count(sum(row[2] == VERDICTS[True] for row in passing), 'check')} passed, and what does not apply"
    return Section("Audit: is the robustness real?", (text, *opened, Folded(summary, (folded,))))
