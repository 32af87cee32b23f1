"""A network that fails its audit is marked in every table, CSV and figure it appears in."""

import csv
import re
from dataclasses import replace

import pytest
from records import compared, run
from rich.console import Console

from experiments.harness import conduct
from experiments.harness.report import comparison as report
from experiments.harness.report import figures, regions
from experiments.harness.report.arms import comparison
from experiments.harness.run import runner
from experiments.harness.run.folder import Run

CHEAT = "implicit_euler"


@pytest.fixture
def audited():
    return run(("explicit_euler", CHEAT), failed=(CHEAT,))


def write(folder, config, records):
    out = Run(folder, config.to_json())
    out.records = records
    out.write_tables()
    return out


@pytest.mark.parametrize("name", ["accuracy.csv", "stability.csv"])
def test_csv_files(audited, tmp_path, name):
    with open(write(tmp_path / "run", *audited).path(name)) as file:
        table = list(csv.DictReader(file))
    said = {(row["scheme"], row["seed"]): row["audit"] for row in table}
    assert said == {
        (scheme, str(seed)): "not audited" if seed else "failed" if scheme == CHEAT else "passed"
        for scheme in ("explicit_euler", CHEAT)
        for seed in range(3)
    }


def test_every_table_of_the_page_and_the_first_sentences(audited, tmp_path):
    report.write_report(comparison(*audited), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for table in re.findall("<table>.*?</table>", page, flags=re.S):
        cells = [cell for cell in re.findall("<t[dh][^>]*>([^<]*)</t[dh]>", table) if cell.startswith(CHEAT)]
        assert (cells or ">measure</th>" in table or "explicit_euler, seed" in table) and all(
            cell.startswith(f"{CHEAT} \u2020") for cell in cells
        ), table
        assert not re.search("explicit_euler \u2020", table)
    assert "Not to be trusted: implicit_euler" in page


def drawn(config, records):
    found = comparison(config, records)
    yield from (
        draw(found)
        for draw in (figures.accuracy_figure, figures.measure_figure, figures.training_figure, regions.clouds_figure)
    )
    swept = [
        replace(record, substeps=n, trained_substeps=n, audit=record.audit if n == 1 else None)
        for record in records
        for n in (1, 2)
    ]
    yield figures.sweep_figure(comparison(replace(config, substeps=(1, 2)), swept))


def test_every_figure(audited):
    for figure in drawn(*audited):
        texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        texts += [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center")]
        named = [text for text in texts if CHEAT in text]
        assert named and all(f"{CHEAT} \u2020" in text for text in named), texts
        assert not any("explicit_euler \u2020" in text for text in texts)


def test_a_reference_that_fails_is_marked_where_others_are_compared_with_it():
    figure = figures.accuracy_figure(compared(failed=("explicit_euler",)))
    assert figure.axes[1].get_title("left").startswith("Difference to explicit_euler \u2020, paired")


def test_the_terminal(audited, tmp_path, monkeypatch, capsys):
    config, records = audited
    finished = write(tmp_path / "run", config, records)
    conduct._print_summary(Console(width=200), comparison(config, records), {}, finished.path("report.html"))
    table = capsys.readouterr().out.split("Report:")[0]
    rows = [line for line in table.splitlines() if re.match(r"\s*(no attack|pgd20 at .*?)?\s+implicit_euler", line)]
    assert len(rows) == 4 and all(f"{CHEAT} \u2020" in line for line in rows)

    class Name:
        name = "case"

    assert [runner._line(Name, record).startswith("case \u2020 failed its audit: ") for record in finished.records] == [
        record.verdict == "failed" for record in finished.records
    ]
