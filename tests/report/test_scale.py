"""Runs of thousands of nets: the work that a report and a resumption do, counted."""

import json

import pytest
from matplotlib import image
from records import compared, config, measured

import odenets
from experiments.compare_schemes import cases_of
from experiments.harness.report import comparison as report
from experiments.harness.report import drawing, figures, regions, sentences
from experiments.harness.run import folder, schema
from experiments.harness.run.folder import Run
from experiments.harness.statistics import families


def test_resuming_reads_whose_the_records_are_and_not_what_they_say(tmp_path, monkeypatch):
    made = config(seeds=tuple(range(40)))
    run = Run(tmp_path / "run", made.to_json())
    run.append([measured(scheme, seed) for scheme in made.schemes for seed in made.seeds if seed != 7])
    read = []
    from_json = schema.Record.from_json
    monkeypatch.setattr(folder, "LARGE", 0)
    monkeypatch.setattr(schema.Record, "from_json", lambda entry: read.append(entry["seed"]) or from_json(entry))
    again = Run(tmp_path / "run", made.to_json(), resume=True)
    cases = cases_of(made, made.seeds)
    assert [case.seed for case in again.missing(cases)] == [7, 7] and read == []
    assert [r.to_json() for r in again.records] == [r.to_json() for r in run.records] and len(read) == 78
    assert again.record_of(cases[3]).seed == 3 and again.record_of(cases[7]) is None
    assert len(again.missing(cases)) == 2 and len(read) == 78


def test_a_line_of_another_version_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "LARGE", 0)
    made = config(seeds=(0,))
    run = Run(tmp_path / "run", made.to_json())
    entry = measured("explicit_euler", 0).to_json()
    old = {key: value for key, value in entry.items() if key not in ("version", "swapped")}  # of no version
    (tmp_path / "run" / "records.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(entry)[:-40] + "\n")
    assert schema.Record.head(json.dumps(old).encode()) is None
    assert schema.Record.head(json.dumps(entry).encode()).key == ("explicit_euler", "residual", 1, 0)
    with pytest.raises(ValueError, match=r"damaged \(line 2\)"):
        Run(tmp_path / "run", made.to_json(), resume=True).missing(cases_of(made, made.seeds))
    assert run.records == []


def test_figures_have_as_many_artists_for_thousands_of_nets_as_for_tens():
    few, many = (compared(seeds=tuple(range(n)), total=20) for n in (40, 400))
    for draw in (figures.measure_figure, figures.training_figure, figures.accuracy_figure):
        counts = [sum(len(ax.get_children()) for ax in draw(found).axes) for found in (few, many)]
        assert counts[0] == counts[1], draw.__name__
    drawn = regions.cloud_panels({"heun": (odenets.get_scheme("heun"), many.arms[0].cloud())})
    dots = sum(
        len(artist.get_offsets()) for ax in drawn.axes for artist in ax.collections if artist.get_label().startswith("_")
    )
    assert dots < sum(map(len, many.arms[0].cloud().values())) / 2


def test_masks_are_unpacked_once_and_families_simulate_no_more_seeds_than_enough(monkeypatch):
    found = compared(seeds=tuple(range(families.ENOUGH + 20)), total=20)
    first = found.arms[0].masks(0.1)
    assert found.arms[0].masks(0.1) is first
    simulated = []
    inner = families._smallest_p
    monkeypatch.setattr(
        families, "_smallest_p", lambda root, looks, *rest: simulated.append(looks) or inner(root, looks, *rest)
    )
    report.summary_table(found)
    assert simulated == [(families.ENOUGH,)]


class Counted(tuple):
    """Records that count how often somebody goes through them."""

    looks = 0

    def __iter__(self):
        self.looks += 1
        return super().__iter__()


def looks_at_records(schemes, seeds):
    """How often the sentences and the table of a report go through the records: of the run, and of all arms."""
    found = compared(schemes, tuple(range(seeds)), total=20)
    whole = vars(found)["records"] = Counted(found.records)
    own = [Counted(arm.records) for arm in found.arms]
    for arm, counted in zip(found.arms, own):
        object.__setattr__(arm, "records", counted)
    report.summary_table(found)
    report.answer(found)
    sentences.caveats(found)
    return whole.looks, sum(counted.looks for counted in own)


def test_how_often_records_are_gone_through_does_not_grow_with_their_number():
    few, many = (looks_at_records(("explicit_euler", "heun"), seeds) for seeds in (8, 24))
    assert few == many
    assert looks_at_records(("explicit_euler", "heun", "midpoint", "rk4"), 8)[0] == few[0] < 20


def test_a_figure_that_is_laid_out_is_drawn_once_for_each_format(tmp_path, monkeypatch):
    figure, drawn = figures.training_figure(compared(total=20)), []
    draw = type(figure).draw
    monkeypatch.setattr(type(figure), "draw", lambda self, renderer: drawn.append(renderer) or draw(self, renderer))
    drawing.save(figure, tmp_path, "training")
    assert len(drawn) == 1 + 3, "for the layout, and as PNG, PDF and SVG"


def test_no_text_of_a_figure_ends_outside_of_it(tmp_path):
    drawing.save(figures.accuracy_figure(compared(("explicit_euler", "implicit_euler"))), tmp_path, "accuracy")
    pixels = image.imread(tmp_path / "accuracy.png")[..., :3]
    assert all((edge == 1).all() for edge in (pixels[:, -4:], pixels[:, :4], pixels[:4], pixels[-4:])), "the margin is white"
