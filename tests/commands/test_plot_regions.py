import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

import odenets
from experiments import plot_regions
from experiments.harness.report import regions, scheme_table
from experiments.harness.report.spectrum_file import read_spectrum


def test_draws_each_region_and_a_sheet_and_prints_the_table(tmp_path, capsys):
    schemes = "rk4,ie_skip(gamma=0.05,iterations=2),adaptive,implicit"
    assert plot_regions.main(["--schemes", schemes, "--out", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").glob("*.png")} == {
        "rk4.png",
        "ie_skip_gamma=0.05_iterations=2.png",
        "implicit_euler.png",
        "sheet.png",
    }
    printed = capsys.readouterr().out
    for expected in ("adaptive: skipped", "2.785", "2.828", "\u221e", "Kutta (1901)"):
        assert expected in printed
    image = matplotlib.image.imread(tmp_path / "new" / "sheet.png")
    assert image.shape[1] > image.shape[0] > 400 and image[..., :3].std() > 0.05


def _stopped(arguments, capsys):
    """What the script says when it refuses: one sentence, exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        plot_regions.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
    return error


RECORDS = "".join(
    json.dumps(record) + "\n"
    for record in [
        {"scheme": "explicit_euler", "seed": 0, "cloud": {"0": [[-0.5, 0.4]], "1": [[-3.0, 0.0]]}},
        {"scheme": "explicit_euler", "seed": 1, "cloud": {"0": [[0.2, 0.0]]}},
        {"scheme": "implicit_euler", "seed": 0, "cloud": {"0": [[-40.0, 7.0]]}},
        {"scheme": "implicit_euler", "seed": 0, "cloud": {}},
    ]
)


def test_the_spectrum_of_a_run_goes_to_the_schemes_of_the_run_and_else_to_all(tmp_path):
    (tmp_path / "records.jsonl").write_text(RECORDS)
    cloud_for = read_spectrum(tmp_path / "records.jsonl")
    explicit = {stage: sorted(points.tolist()) for stage, points in cloud_for(odenets.get_scheme("explicit")).items()}
    assert explicit == {"0": [[-0.5, -0.4], [-0.5, 0.4], [0.2, 0.0]], "1": [[-3.0, 0.0]]}
    assert len(cloud_for(odenets.get_scheme("rk4"))["0"]) == 5, "all nets, each pair completed"


def test_a_spectrum_is_drawn_on_top_and_its_growth_is_printed(tmp_path, capsys):
    (tmp_path / "eigenvalues.csv").write_text("name, Im ,re\na,0,-1\nb,30,-2\n\nc,0,-0.5\n")
    arguments = ["--schemes", "explicit,ie_skip", "--spectrum", tmp_path / "eigenvalues.csv", "--out", tmp_path / "out"]
    assert plot_regions.main([*map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert "explicit_euler: max |R| 30.02 over 3 values, |R| > 1 at 1\n" in printed
    assert "normal Jacobians only" in printed
    cloud = read_spectrum(tmp_path / "eigenvalues.csv")(None)
    schemes = [odenets.get_scheme(name) for name in ("rk4", "ie_skip")]
    figure = regions.region_sheet(schemes, None, {"rk4": cloud, "ie_skip": cloud})
    for ax in figure.axes[:2]:
        assert max(ax.get_ylim()) > 30 and any(
            np.array_equal(dots.get_offsets(), cloud["0"]) for dots in ax.collections if len(dots.get_offsets()) == 3
        )


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfre,im\r\n-1,2\r\n0.5,-3\r\n",
        b"re;im\r\n-1;2\r\n0.5;-3\r\n",
        b"re;im\n-1,0;2\n0,5;-3\n",
        b"re\tim\n-1\t2\n0.5\t-3\n",
        b"# re,im\n-1,2\n# a comment\n0.5,-3\n",
        b"# re im\n-1.0e+00 2.0e+00\n5.0e-01 -3.0e+00\n",
        b"-1+2j\n0.5-3j\n",
        b"\xef\xbb\xbflambda\n(-1+2j)\n(0.5-3j)\n",
        b"z\n -1+2i\n0.5 - 3i\n",
        b" (-1.0e+00+2.0e+00j)\n (5.0e-01+-3.0e+00j)\n",
        b'"re","im"\n"-1","2"\n0.5,-3\n',
    ],
)
def test_a_spectrum_as_other_programs_write_it(tmp_path, content):
    (tmp_path / "z.csv").write_bytes(content)
    assert read_spectrum(tmp_path / "z.csv")(None)["0"].tolist() == [[-1, 2], [0.5, -3]]


def test_a_spectrum_as_numpy_writes_it(tmp_path):
    z = np.array([-1 + 2j, 0.5 - 3j, -1e-17 - 1e300j])
    np.savetxt(tmp_path / "z.txt", z)
    np.savetxt(tmp_path / "parts.txt", np.stack([z.real, z.imag], 1), header="re im")
    np.savetxt(tmp_path / "parts.csv", np.stack([z.real, z.imag], 1), header="re,im", delimiter=",")
    for name in ("z.txt", "parts.txt", "parts.csv"):
        assert read_spectrum(tmp_path / name)(None)["0"].tolist() == np.stack([z.real, z.imag], 1).tolist()


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("missing.csv", None, "No such file"),
        ("a.csv", "x,y\n1,2\n", "must be a CSV whose first line names the columns re"),
        ("a.csv", "", "first line has nothing"),
        ("a.csv", "re,im\n", "no eigenvalues below its header"),
        ("a.csv", "re,im\n1,2\n3,left\n", "line 3: re and im must be finite numbers, got 3,left"),
        ("a.csv", "re\n1\n", "must be a CSV whose first line names the columns re"),
        ("a.csv", "1;2\n3;4\n", "must be a CSV whose first line"),
        ("a.csv", "z\n1-2j\n1-2k\n", "line 3: this must be a finite complex number such as -1+2j, got 1-2k"),
        ("a.csv", "re;im\n1.000,5;2\n", "line 2: re and im"),
        ("a.csv", "re,im\n1\n", "line 2: re and im"),
        ("a.csv", "re,im\nnan,1\n", "line 2: re and im"),
        ("a.csv", b"re,im\n\xff\xfe", "not a text file"),
        ("r.jsonl", '{"scheme": "rk4"\n', "line 1: not a record of a run"),
        ("r.jsonl", '{"scheme": "rk4"}\n[]\n', "line 2: not a record"),
        ("r.jsonl", '{"scheme": "rk4", "cloud": {"0": [[1, 2, 3]]}}\n', "line 1: not a record"),
        ("r.jsonl", '{"scheme": "rk4", "cloud": {}}\n', "holds 1 records and no eigenvalues"),
    ],
)
def test_a_bad_spectrum_is_one_sentence_and_exit_code_2(tmp_path, capsys, name, content, named):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in _stopped(["--schemes", "rk4", "--spectrum", path, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_the_table_of_the_docs_is_current():
    path = Path(__file__).parents[2] / "docs/schemes.md"
    stale = "stale: python experiments/plot_regions.py --table docs/schemes.md writes it anew"
    assert scheme_table.replaced(path.read_text(), path) == path.read_text(), stale


def test_the_table_is_written_between_its_markers(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{scheme_table.START}\nold\n{scheme_table.END}\nafter\n")
    assert plot_regions.main(["--table", str(path)]) == 0
    before, table, after = path.read_text().replace(scheme_table.END, scheme_table.START).split(scheme_table.START)
    assert (before, after) == ("before\n", "\nafter\n") and "old" not in table
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1].split("(")[0] for line in rows] == odenets.list_schemes()
    assert {line.count("|") for line in rows} == {1 + len(scheme_table.COLUMNS)}
    path.write_text("no markers\n")
    assert "must hold the line" in _stopped(["--table", path], capsys) and path.read_text() == "no markers\n"
    assert "cannot rewrite --table" in _stopped(["--table", tmp_path / "none"], capsys)
    assert "nothing to do" in _stopped([], capsys)


@pytest.mark.parametrize(
    "schemes, named",
    [
        ("rk5", "unknown scheme 'rk5'; choose from"),
        ("", "--schemes is empty; choose from"),
        ("explicit,euler", "'euler' stands twice"),
        ("rk4(gamma=1)", "unknown parameter 'gamma'"),
        ("adaptive", "none of the schemes 'adaptive' has a region"),
    ],
)
def test_bad_schemes_are_one_sentence_and_exit_code_2(tmp_path, capsys, schemes, named):
    with pytest.raises(SystemExit) as stopped:
        plot_regions.main(["--schemes", schemes, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and named in error and error.count("\n") == 1 and "Traceback" not in error


def test_an_unwritable_folder_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        plot_regions.main(["--schemes", "rk4", "--out", str(tmp_path / "file" / "regions")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "cannot write to --out" in error and error.count("\n") == 1


def _cauchy_riemann(R, z=-0.37 + 0.61j, d=1e-6):
    """How far R is from satisfying the Cauchy-Riemann equations at z."""
    right, up = (R(np.array([z + step])) - R(np.array([z - step])) for step in (d, 1j * d))
    return np.abs(up - 1j * right)[0]


@pytest.mark.parametrize("name", odenets.list_schemes())
def test_what_a_scheme_says_of_its_R_is_so(name):
    scheme = odenets.get_scheme(name)
    if not scheme.has_R:
        with pytest.raises(odenets.InputError, match="no stability function"):
            scheme.amplification(np.zeros(1))
    else:
        assert scheme.analytic == (_cauchy_riemann(scheme.amplification) < 1e-8)


def test_the_bold_line_is_where_r_has_modulus_one():
    ax = Figure().subplots()
    regions.draw_region(ax, "rk4", cloud={"0": np.array([[-1.0, 0.5]])}, window=(-4, 1, -3.5, 3.5))
    boundary = next(c for c in ax.collections if list(getattr(c, "levels", [])) == [0.0])
    points = np.concatenate([path.vertices for path in boundary.get_paths()]) @ (1, 1j)
    assert np.abs(np.abs(odenets.get_scheme("rk4").amplification(points)) - 1).max() < 0.01
    assert points.real.min() == pytest.approx(-2.7853, abs=0.01)
    assert ax.get_xlim() == (-4, 1) and ax.get_aspect() == 1


def test_every_region_draws_in_its_own_window():
    for name in [name for name in odenets.list_schemes() if odenets.get_scheme(name).has_R]:
        regions.draw_region(Figure().subplots(), name)
