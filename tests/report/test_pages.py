"""Pages for everyone: on a desk, a phone and paper, by keyboard and screen reader; tables and figures for papers."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browsed import WIDTHS, measured
from browsed import run as chromium
from matplotlib.figure import Figure as Drawing
from records import compared, config, measurement, record, run
from records import measured as measured_net

import odenets
from experiments.harness.report import certificates, collection, environment, evaluation, reproduction, study, survey
from experiments.harness.report import comparison as report
from experiments.harness.report.arms import comparison
from experiments.harness.report.drawing import described
from experiments.harness.report.page import Figure, Folded, Page, Section, Table, Text, tex
from experiments.harness.run.certified import CertifyConfig, Line, Pair, by_pair
from experiments.harness.run.config import EvaluationConfig
from experiments.harness.run.schema import Made, Metric
from experiments.harness.training.settings import TrainingSettings

SCHEMES = ("explicit_euler", "implicit_euler", "ie_skip(gamma=0.05,iterations=2)", "rk4", "heun")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: a page of every kind that a run can end in}; of many schemes too."""
    folder = tmp_path_factory.mktemp("pages")
    found = compared(SCHEMES, seeds=(0, 1), failed=("rk4",))
    (folder / "run").mkdir()
    report.write_report(found, folder / "run" / "report.html")
    made, records = run(("explicit_euler", "implicit_euler"))
    collection.write_collection(collection.collection({folder / "run": (made, records)}), folder)
    related = [
        replace(r, stability=(Metric(0, 0, "log_norm", i + 0.1 * r.seed), Metric(0, 0, "kreiss", 2 + r.seed)))
        for i, scheme in enumerate(SCHEMES)
        for r in (measured_net(scheme, seed, gap=0.01 * i) for seed in (0, 1))
    ]
    study.write_study(study.study([(config(SCHEMES, (0, 1)), related)]), folder)
    skips = [
        record(
            s, seed, training="summed", measurements=(measurement("clean", 0, [1, 1, 0]), measurement("pgd20", 0.1, [1, 0, 0]))
        )
        for s in ("explicit_euler", "ie_skip")
        for seed in (0, 1)
    ]
    reproduction.write_reproduction([comparison(config(("explicit_euler", "ie_skip"), (0, 1), epsilons=(0.1,)), skips)], folder)
    given = ("dataset", "attacks", "epsilons", "threat", "audit", "audit_epsilon", "audit_images", "data", "environment")
    own = EvaluationConfig(network="a net", weights={"net": "ab" * 32}, **{name: getattr(made, name) for name in given})
    evaluation.write(own, [replace(r, network=f"net {r.seed}") for r in records[3:]], folder / "evaluation.html")
    many = [measured_net(s, seed, total=60, stages=1) for s in odenets.list_schemes()[:-1] for seed in (0, 1)]
    (folder / "many").mkdir()
    everything = comparison(config(odenets.list_schemes(), (0, 1)), many)
    report.write_report(everything, folder / "many" / "report.html")
    torch.manual_seed(0)  # of states so small that a Kreiss constant is enclosed in a second, whatever the weights
    net, images = odenets.ode_resnet_small(10, 1), torch.rand(2, 1, 4, 4)
    (folder / "survey").mkdir()
    survey.write_page(survey.survey(net, images, None, 0.1), "a net", "2 random images", folder / "survey")
    proofs = Path(__file__).parents[2] / "docs/records/certify-mnist-linf"
    lines = [Line.from_json(json.loads(line)) for line in (proofs / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    given = json.loads((proofs / "config.json").read_text(encoding="utf-8"))
    given |= {"pairs": tuple(Pair(**pair) for pair in given["pairs"]), "settings": TrainingSettings(**given["settings"])}
    (folder / "certify").mkdir()
    certificates.write(
        CertifyConfig(**{k: v for k, v in given.items() if k != "experiment"}), by_pair(lines), folder / "certify"
    )
    names = {name: f"{name}/report.html" for name in ("run", "many", "survey", "certify")}
    whole = ("collected", "relation", "reproduction", "evaluation")
    return {name: folder / path for name, path in (names | {name: f"{name}.html" for name in whole}).items()}


def test_every_page_on_a_desk_on_a_phone_and_on_paper(pages, tmp_path):
    found = measured(pages, tmp_path)
    assert set(found) == {(name, medium) for name in pages for medium in WIDTHS}
    for (name, medium), page in found.items():
        assert page["beyond"] == [], (name, medium, "what leaves the screen without a box to scroll in")
        assert page["text"] >= (9 if medium != "print" else 6.9), (name, medium, "pixels of the smallest text of a figure")
        wrong = {key: page[key] for key in ("silent", "boxes", "headings", "twice", "headers", "unnamed", "open")}
        assert not any(wrong.values()), (name, medium, wrong)
        assert page["mains"] == 1 and page["first"] == "skip"
    assert [found[name, "phone"]["figures"] for name in ("run", "many", "survey", "certify")] == [4, 4, 3, 1]
    assert found["relation", "print"]["figures"] >= 1


def test_a_page_is_printed(pages, tmp_path):
    chromium(f"--print-to-pdf={tmp_path / 'page.pdf'}", pages["run"].as_uri())
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12


def test_what_passes_is_folded_away_and_what_fails_is_not(pages):
    page = pages["run"].read_text(encoding="utf-8")
    folded = re.search("<details>(.*?)</details>", page, re.S)[1]
    assert "passes" in folded and "fails" not in folded and ">fails<" in page


def test_rows_have_headers_and_equal_ones_stand_once(pages):
    page = pages["run"].read_text(encoding="utf-8")
    assert '<th scope="rowgroup" rowspan="5">no attack</th><th scope="row">explicit_euler</th>' in page.replace("\n", "")
    assert not re.search("<th(?=[ >])(?![^>]* scope=)", page)


def test_figures_tell_their_numbers_and_count_epochs_in_whole_numbers():
    found = compared()
    told = Figure("accuracy", report.figures.accuracy_figure(found), "A caption. More.").alternative
    for arm in found.arms:
        values = [f"{100 * found.accuracy(arm, eps).value:.3g} at {eps:g}" for eps in (0.0, 0.05, 0.1, 0.15)]
        assert f"{arm.label} {', '.join(values)}" in told
    assert f"implicit_euler {100 * found.gap(found.arms[1], 0.0).estimate.value:.3g} at 0, " in told
    assert told.startswith("A caption. Accuracy: ") and "$" not in told and "\\" not in told
    drawing = report.figures.training_figure(found)
    assert all(float(tick).is_integer() for ax in drawing.axes for tick in ax.get_xticks())
    assert "mean of 3" in described(drawing)


def test_every_figure_is_a_pdf_and_every_table_latex_and_csv(pages):
    folder = pages["run"].parent
    assert {p.name for p in (folder / "figures").iterdir()} >= {"accuracy.png", "accuracy.pdf", "regions.pdf"}
    assert (folder / "figures/accuracy.pdf").read_bytes().startswith(b"%PDF")
    tables = {p.stem for p in (folder / "tables").glob("*.tex")}
    assert tables == {p.stem for p in (folder / "tables").glob("*.csv")} >= {"accuracy", "solver", "detached", "audit-failed"}
    rows = list(csv.reader(io.StringIO((folder / "tables/accuracy.csv").read_text(encoding="utf-8"))))
    assert rows[1][:2] == ["no attack", "explicit_euler"] and rows[2][0] == "no attack"
    for path in (folder / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), re.findall("[^\x00-\x7f].{20}", text)
        body = text.split("\\begin{tabular}")[1].split("\\end{tabular}")[0]
        columns = len(re.findall(r"p\{|[lr]", re.sub(r"\{0.4\\linewidth\}", "", body.split("}\n")[0]).replace("p", "p{")))
        lines = [line for line in body.splitlines() if line.rstrip().endswith(("\\\\", "\\addlinespace"))]
        assert len(lines) > 1 and {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {columns}, path


def test_latex_takes_every_character_as_a_letter():
    assert tex("a_b & 5 % of #1 {x} ~ ^ \\ $") == (
        r"a\_b \& 5 \% of \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"
    )
    assert tex("[1, 2]") == "{}[1, 2]" and tex("*") == "{}*", "after a line break these would be taken for its argument"
    assert tex("\u03b5 = 8/255, \u22121.0 \u2020") == r"$\varepsilon$ = 8/255, $-$1.0 $\dagger$"
    table = Table("t", ("name", "value"), [("a", "1"), ("a", "[\u22122, 3]"), ("b", "")], "About 5 %.")
    assert table.latex() == (
        "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\\small\n\\begin{tabular}{lr}\n\\toprule\nname & value \\\\\n"
        "\\midrule\na & 1 \\\\\n & {}[$-$2, 3] \\\\ \\addlinespace\nb &  \\\\\n\\bottomrule\n\\end{tabular}\n"
        "\\caption{About 5 \\%.}\n\\label{tab:t}\n\\end{table}\n"
    )


def test_a_section_is_one_entry_and_its_figures_are_numbered(tmp_path):
    drawing = Drawing()
    drawing.subplots().plot([1, 2], [3, 4], label="line")
    parts = (Text("x < y"), Folded("more", (Table("t", ("a",), [("<b>",)]), Figure("f", drawing, "Caption."))))
    Page("T", "s", ["Yes."], [Section("What is it?", parts), None], notices=["Mind."]).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'alt="Figure 1. Caption. line 3 at 1, 4 at 2."' in page and '<h2 id="what-is-it">' in page
    assert '<a href="#what-is-it">' in page and "x &lt; y" in page and '<th scope="row">&lt;b&gt;</th>' in page
    assert '<p class="notice">Mind.</p>' in page and {p.name for p in (tmp_path / "figures").iterdir()} == {"f.png", "f.pdf"}


def test_another_environment_than_that_of_the_docs_is_said(tmp_path, monkeypatch):
    made, _ = run()
    monkeypatch.setattr(environment, "RECORDS", tmp_path)
    (tmp_path / "compare").mkdir()

    def departures(**versions):
        other = replace(made, environment={**made.environment, **versions})
        (tmp_path / "compare" / "config.json").write_text(json.dumps(other.to_json()))
        return environment.departures([("this run", made)])

    (told,) = departures(torch="2.10.0")
    assert told.startswith("docs/records/compare was made with torch 2.10.0, this run with torch 2.11.0. Other builds")
    assert departures() == [] and departures(python="3.9") == []
    departures(torch="2.10.0")
    assert environment.departures([("this run", replace(made, dataset="mnist"))]) == []
    shutil.copytree(tmp_path / "compare", tmp_path / "twelve")
    (told,) = environment.departures([("a", made), ("b", made)])
    assert told.startswith("docs/records/compare, docs/records/twelve were made with torch 2.10.0, a, b with torch 2.11.0.")


def test_every_page_of_runs_warns_of_another_environment_than_that_of_the_docs(tmp_path, monkeypatch):
    made, records = run(("explicit_euler", "heun", "midpoint", "rk4", "ssprk33", "ralston2"))
    before = replace(made, environment={**made.environment, "torch": "2.10.0"})
    (tmp_path / "records" / "twelve").mkdir(parents=True)
    (tmp_path / "records" / "twelve" / "config.json").write_text(json.dumps(before.to_json()))
    monkeypatch.setattr(environment, "RECORDS", tmp_path / "records")
    report.write_report(comparison(made, records), tmp_path / "report.html")
    runs = {tmp_path / "mine": (made, records)}
    collection.write_collection(collection.collection(runs), tmp_path)
    other = replace(made, environment=before.environment, seeds=(3,))
    study.write_study(study.study([(made, records), (other, again(records))]), tmp_path)
    warning = "docs/records/twelve was made with torch 2.10.0, {} with torch 2.11.0. Other builds"
    named = {"report": "this run", "collected": tmp_path / "mine", "relation": "the run of standard training"}
    for page, name in named.items():
        text = (tmp_path / f"{page}.html").read_text(encoding="utf-8")
        assert f'<p class="notice">{warning.format(name)}' in text, page
    assert "Environments differ (torch 2.11.0 and 2.10.0)" in text and text.count(made.command) == 2
    monkeypatch.setattr(environment, "RECORDS", tmp_path / "none")
    collection.write_collection(collection.collection(runs), tmp_path)
    assert 'class="notice"' not in (tmp_path / "collected.html").read_text(encoding="utf-8")


def test_a_page_takes_away_what_the_page_of_before_had_beside_it(tmp_path):
    def write(name, *parts):
        Page("T", "s", ["Yes."], [Section("What is it?", parts)]).write(tmp_path / name)

    drawing = Drawing()
    drawing.subplots().plot([1, 2])
    write("other.html", Table("others", ("a",), [("1",)]))
    write("page.html", Table("failed", ("a",), [("1",)]), Table("passed", ("a",), [("1",)]), Figure("mu", drawing, "Caption."))
    (tmp_path / "figures" / "mine.png").touch()
    write("page.html", Table("passed", ("a",), [("2",)]))
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {
        f"{n}.{s}" for n in ("passed", "others") for s in ("csv", "tex")
    }
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["mine.png"]


def test_nets_that_were_made_in_another_environment_than_the_page_names_are_counted(tmp_path):
    made, records = run()

    def by(torch, device="cpu", phases=("training",)):
        return Made("node", device, {"python": "3.9", "torch": torch}, phases)

    def told(*records):
        return environment.elsewhere([("this run", made, records)])

    same = [replace(r, made=(by("2.11.0+cpu"),)) for r in records]
    assert told(*same) == [] and told(*records) == []
    resumed = [*same[:4], *(replace(r, made=(by("2.10.0+cu130"), *r.made)) for r in same[4:])]
    (said,) = told(*resumed)
    assert said.startswith("2 nets of this run were made, wholly or in part, with torch 2.10.0, and not with torch 2.11.0")
    (said,) = told(*same[1:], replace(records[0], made=(by("2.11.0", "H100"),)))
    assert said.startswith("1 net of this run was made, wholly or in part, with device H100, and not with device cpu")
    report.write_report(comparison(made, resumed), tmp_path / "report.html")
    collection.write_collection(collection.collection({tmp_path / "mine": (made, resumed)}), tmp_path)
    for page, name in (("report", "this run"), ("collected", tmp_path / "mine")):
        assert f'<p class="notice">2 nets of {name} were made' in (tmp_path / f"{page}.html").read_text(encoding="utf-8")


def again(records):
    """The nets of another seed."""
    return [replace(r, seed=3) for r in records if r.seed == 0]
