"""What the documents say of runs: every table beside its record, every command as it was given, every environment."""

import json
import re
from pathlib import Path

import pytest

from experiments.benchmarks.records import indexed

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = (DOCS / "results.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results.md")}
CONFIGS = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted(DOCS.glob("records/*/config.json"))}


def plain(text):
    return " ".join(text.replace("\\\n", " ").split())


def sections(page):
    """Those of its headings that hold a table of figures: a table whose cells have percentages."""
    return [part for part in re.split(r"^##+ ", page, flags=re.M) if re.search(r"^\|.*\d\.\d", part, re.M)]


def test_the_index_of_records_is_current():
    stale = "stale: python experiments/benchmarks/records.py --index docs/results.md writes it anew"
    assert indexed(RESULTS, DOCS) == RESULTS, stale


@pytest.mark.parametrize("name", CONFIGS)
def test_a_record_is_told_with_its_command_seeds_and_environment(name):
    config = CONFIGS[name]
    entry = RESULTS.split(f"**[{name}](")[1].split("**[")[0]
    assert plain(config["command"]) in plain(entry)
    assert all(f"{key} {value}" in entry for key, value in config["environment"].items() if value)
    assert str(config.get("seeds", [0])[0]) in entry


def test_every_table_stands_beside_the_record_and_the_seeds_that_it_is_of():
    checked = 0
    for name, page in PAGES.items():
        for section in sections(page.split("<!-- records -->")[0]):
            linked = set(re.findall(r"records/([\w-]+)", section))
            assert linked and linked <= {p.name for p in (DOCS / "records").iterdir()}, (name, section[:60])
            assert re.search(r"seed", section, re.I), (name, section[:60])
            checked += 1
    assert checked >= 6


def test_commands_among_the_results_are_those_of_records():
    recorded = {plain(config["command"]) for config in CONFIGS.values()}
    told = re.findall(r"```\n(.*?)```", RESULTS.split("<!-- records -->")[0], re.S)
    commands = [f"python experiments/{c}" for block in told for c in plain(block).split("python experiments/") if c.strip()]
    assert len(commands) >= 6 and {command.strip() for command in commands} <= recorded


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")]), ids=lambda page: page.name)
def test_links_lead_to_files_and_paths_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:odenets|stability|experiments|tests|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
