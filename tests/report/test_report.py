from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from records import compared, measured, run, verdict
from scipy import stats

from experiments.harness.report import comparison as report
from experiments.harness.report import regions
from experiments.harness.report import sentences as findings
from experiments.harness.report.arms import comparison, merged_clouds
from experiments.harness.report.page import Table, Text
from experiments.harness.statistics.two_way import two_way
from experiments.harness.training.epoch import Epoch

FIVE = ("explicit_euler", "implicit_euler", "ie_skip(gamma=0.05,iterations=2)", "rk4", "adaptive")


class Page(HTMLParser):
    """Open tags, image sources and the text of a page; refuses tags that do not nest."""

    VOID = ("meta", "img", "br", "link", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report.write_report(compared(FIVE, seeds=(0, 1), failed=("rk4",)), folder / "report.html")
    return folder, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_one_file_without_network_or_script(page):
    folder, parsed = page
    assert "script" not in parsed.tags and parsed.tags >= {"table", "figure", "figcaption"}
    assert all(source.startswith("data:image/") or "/" not in source for source in parsed.sources)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("accuracy", "regions", "measure", "training") for suffix in ("png", "pdf")
    }
    assert sum(source.startswith("data:") for source in parsed.sources) == 4


def test_the_page_says_what_it_must(page):
    text = " ".join(page[1].text)
    for phrase in (
        "What these figures do not show",
        "(gradient masking): implicit_euler by",
        "rk4 \u2020",
        "R is not analytic",
        "adaptive: the steps depend on the data",
        "trained at 0.01",
        "python experiments/compare_schemes.py",
        "accuracy.csv",
        "2 seeds",
        "1,797",
        "12.7 standard errors",
        "Not to be trusted: rk4",
        "2.11.0",
    ):
        assert phrase in text, phrase
    assert "Smoke run" not in text and "nan" not in text.lower().split() and "None" not in text


def test_ritz_values_are_published_by_their_extremes_never_as_shares(page):
    caption = next(text for text in page[1].text if "on top Ritz values" in text)
    assert "%" not in caption and "density of the dots means nothing" in caption
    config, records = run()
    real, imaginary = np.concatenate([cloud for r in records[:3] for cloud in r.cloud.values()]).T
    records[3:] = [replace(record, cloud={"0": [[-0.5, 0.1]]}) for record in records[3:]]
    boxes = [text.get_text() for ax in regions.clouds_figure(comparison(config, records)).axes for text in ax.texts]
    largest = np.abs(1 + real + 1j * imaginary).max()
    assert f"max Re z = {real.max():.2f}\nmax |R(z)| = {largest:.3g}" in boxes and "%" not in " ".join(boxes)
    assert f"The rightmost h\u03bb measured is {real.max():.2g} > 0" in " ".join(findings.caveats(comparison(config, records)))
    caveats = " ".join(findings.caveats(comparison(config, records[3:])))
    assert "rightmost" not in caveats and "Only the outermost approximate eigenvalues" in caveats


def _rows(section):
    """The rows of the table in a section."""
    (table,) = (part for part in section.flat() if isinstance(part, Table))
    return [list(row) for row in table.rows]


def test_the_solver_table_shows_unsolved_gradients_and_is_empty_without_them():
    config, records = run()
    explicit, implicit = _rows(report._solver(comparison(config, records)))
    assert "3.21" in implicit and "4.32" in implicit and "3.21" not in explicit
    records = [
        replace(
            record,
            solver=record.solver
            and replace(record.solver, backward_unconverged_share=None, training_backward_unconverged_share=None),
        )
        for record in records
    ]
    assert _rows(report._solver(comparison(config, records)))[1].count("") == 3


def test_everything_from_outside_is_escaped(tmp_path):
    config, records = run(seeds=(0,))
    config = replace(
        config, command="python x.py --out '<script>alert(1)</script>'", environment=config.environment | {"platform": "<b>&"}
    )
    first, *checks = records[0].audit.checks
    records[0] = replace(records[0], audit=replace(records[0].audit, checks=(replace(first, reason="<i>no</i>"), *checks)))
    report.write_report(comparison(config, records), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<i>no" not in text and "&lt;b&gt;&amp;" in text


def test_a_difference_inside_its_interval_is_never_claimed():
    for gap, seeds, said in (
        (0.0, (0, 1, 2), "cannot tell yet"),
        (0.03, (0, 1, 2), "less robust"),
        (-0.03, (0, 1, 2), "more robust"),
        (-0.2, (0,), "cannot tell yet"),  # another seed might turn it round
    ):
        config, records = run(seeds=seeds)
        records = [measured(r.scheme, r.seed, gap=gap * (r.scheme != "explicit_euler")) for r in records]
        sentences = report.headline(comparison(config, records))
        assert sentences[0].startswith(f"On digits, {len(seeds)} seed") and "\u03b5 = 0.1" in sentences[0]
        assert said in sentences[0] and sentences[1].endswith(f"{said}.")
        assert ("over 450 images of one seed" if len(seeds) == 1 else "over 3 seeds") in sentences[1]
        claims = {"less robust", "is more robust than", "equivalent"} - {said, f"is {said} than"}
        assert not any(claim in " ".join(sentences) for claim in claims)


def test_the_table_agrees_with_numbers_computed_by_hand():
    config, records = run()
    table = report.summary_table(comparison(config, records))
    header, rows = table.columns, table.rows
    assert len(rows) == 2 * 4 and {len(row) for row in rows} == {len(header)}
    shares = {
        scheme: [
            m.correct / 450
            for r in records
            if r.scheme == scheme
            for m in r.measurements
            if m.epsilon == 0.1 and m.gradient == "exact"
        ]
        for scheme in config.schemes
    }
    row = next(row for row in rows if row[:2] == ("pgd20 at \u03b5 = 0.1", "implicit_euler"))
    difference = np.subtract(shares["implicit_euler"], shares["explicit_euler"])
    found = comparison(config, records)
    level = found.gap(found.arms[1], 0.1).estimate.level
    masks = [np.array(list(arm.masks(0.1).values()), float) for arm in found.arms]
    whole = two_way(masks[1] - masks[0])
    q = (1 + level) / 2
    half = stats.t.ppf(q, whole.degrees) * (whole.seeds + whole.images) ** 0.5
    half = max(half, stats.t.ppf(q, len(masks[0]) - 1) * whole.seeds**0.5)
    low, high = difference.mean() - half, difference.mean() + half
    assert 0.95 < level < 1 - 0.05 / 4 / 1.1, "four radii, one table"
    assert row[2] == f"{100 * np.mean(shares['implicit_euler']):.1f}"
    assert row[4] == f"{100 * difference.mean():+.1f}".replace("-", "\u2212")
    assert row[5] == f"[{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "\u2212") and row[8] == "0.4"
    assert rows[0][7] == "reference"


@pytest.mark.parametrize(
    ("audited", "sentence"),
    [
        (6, "All 6 nets passed the audit."),
        (2, "2 of 6 nets were audited, and passed the audit."),
        (0, "No net was audited: gradients may be masked."),
        (-1, None),
    ],
)
def test_the_headline_says_what_was_audited(audited, sentence):
    config, records = run()
    records = [
        replace(record, audit=verdict(audited >= 0) if index < abs(audited) else None) for index, record in enumerate(records)
    ]
    sentences = report.headline(comparison(config, records))
    assert (sentence in sentences) if sentence else not any("passed" in text or "No net" in text for text in sentences)


def test_the_audit_table_is_whole_for_one_net_of_a_scheme_and_brief_for_the_others():
    config, records = run()
    records = [replace(r, audit=verdict(r.seed != 2 or r.scheme == "explicit_euler")) for r in records]
    text, failed, folded = report._audit(comparison(config, records)).parts
    (passed,) = folded.parts
    assert "5 of 6 nets pass" in text.text and len(passed.rows) == (3 + 1) + (3 + 1)
    assert passed.rows[3] == ("explicit_euler, 2 more seeds", "all that apply", "passes", "seeds 1, 2")
    assert [row[:3] for row in failed.rows] == [("implicit_euler \u2020, seed 2", "finite differences", "fails")]
    assert folded.summary == "6 checks passed, and what does not apply"


def test_each_attack_stands_by_itself_where_there_are_several():
    config, records = run()
    assert report._by_attack(comparison(config, records)) is None
    records = [
        replace(
            r,
            measurements=(
                *r.measurements,
                *(replace(m, attack="square200", gradient="exact") for m in r.measurements if m.gradient == "detached"),
            ),
        )
        for r in records
    ]
    rows = _rows(report._by_attack(comparison(config, records)))
    assert [row[:2] for row in rows[:2]] == [["0.05", "explicit_euler"], ["0.05", "implicit_euler"]] and rows[0][3] == ""
    pgd, square, together = (row.split(" / ") for row in rows[1][2:])
    assert len(pgd) == 2 and square == pgd[1:] and float(together[0]) <= float(pgd[0]) < float(pgd[1]) == float(together[1])


def test_smoke_runs_and_single_schemes_say_so(tmp_path):
    found = compared(("explicit_euler",), seeds=(0,), smoke=True)
    report.write_report(found, tmp_path / "report.html")
    assert "The numbers mean nothing" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "One scheme alone compares with nothing" in " ".join(report.headline(found))


def test_missing_cases_are_named_and_break_nothing(tmp_path):
    config, records = run()
    records = [record for record in records if (record.scheme, record.seed) != ("implicit_euler", 1)]
    assert "implicit_euler, seed 1" in findings.caveats(comparison(config, records))[0]
    report.write_report(comparison(config, records[3:]), tmp_path / "report.html")  # nothing of the first scheme
    assert "over 2 seeds" in " ".join(report.headline(comparison(config, records)))


def test_a_sweep_over_substeps_keeps_its_arms_apart(tmp_path):
    config, records = run(seeds=(0,))
    unmeasured = {"cloud": {}, "stability": (), "history": (), "seconds": {}, "audit": None}
    again = [
        replace(r, substeps=n, trained_substeps=trained, **unmeasured) for r in records for n in (2, 4) for trained in (1, n)
    ]
    found = comparison(replace(config, substeps=(1, 2, 4)), records + again)
    assert [arm.name for arm in found.arms][:5] == [
        f"explicit_euler, {arm}"
        for arm in ("1 step", "2 steps (trained with 1)", "4 steps (trained with 1)", "2 steps", "4 steps")
    ]
    assert len(report.summary_table(found).rows) == 4 * 10 and "of 9 schemes" in report.headline(found)[0]
    report.write_report(found, tmp_path / "report.html")
    assert (tmp_path / "figures" / "sweep.png").exists()


def test_records_keep_one_of_each_conjugate_pair_and_the_cloud_has_both():
    cloud = merged_clouds([{"0": [[1.0, 0.5], [2.0, 0.0]]}, {"0": [[3.0, 1.0]], "1": []}])
    assert sorted(map(tuple, cloud["0"])) == [(1, -0.5), (1, 0.5), (2, 0), (3, -1), (3, 1)]
    assert cloud["1"].shape == (0, 2)


def test_which_nets_had_which_checks_is_said():
    config, records = run()
    cheap = replace(verdict(), extent="cheap", images=16)
    seconds = {"training": 1.0}
    records = [r if r.audit else replace(r, audit=cheap, seconds=seconds if r.seed == 2 else r.seconds) for r in records]
    found = comparison(config, records)
    (told,) = [sentence for sentence in report.headline(found) if "audited" in sentence]
    assert told == (
        "2 of 6 nets were audited, and passed the audit. Of 4 nets the checks that take seconds were run, and passed."
    )
    limits = " ".join(findings.caveats(found))
    assert "4 nets had the checks of the audit that take seconds, and these alone" in limits
    assert "Dynamics were not measured (explicit_euler, seed 2; implicit_euler, seed 2)" in limits
    assert (
        records[1].verdict == "cheap checks passed"
        and replace(records[1], audit=replace(cheap, passed=False)).verdict == "failed"
    )


def test_training_along_an_approximate_gradient_is_said():
    config, records = run()
    loose = "implicit_euler(tol=0.01,backward_tol=0.03,backward_stop=batch)"
    history = (Epoch(1, 1.0, 0.9, gradient_cosine=0.987), Epoch(2, 0.5, 0.95, gradient_cosine=0.995))
    records = [replace(r, trained_as=loose, history=history) if r.scheme == "implicit_euler" else r for r in records]
    said = [part.text for part in report._solver(comparison(config, records)).parts if isinstance(part, Text)]
    told = [text for text in said if "approximate gradient" in text]
    assert len(told) == 1 and loose in told[0] and "at least 0.987" in told[0]
