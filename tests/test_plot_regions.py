import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

import odenets
from experiments import plot_regions
from experiments.harness import regions


def test_draws_each_region_and_a_sheet_and_prints_the_table(tmp_path, capsys):
    schemes = "rk4,ie_skip(gamma=0.05,iterations=2),adaptive,implicit"
    assert plot_regions.main(["--schemes", schemes, "--out", str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "rk4.png", "ie_skip_gamma=0.05_iterations=2.png", "implicit_euler.png", "sheet.png"}
    printed = capsys.readouterr().out
    for expected in ("adaptive: skipped", "2.785", "2.828", "\u221e", "Kutta (1901)"):
        assert expected in printed
    image = matplotlib.image.imread(tmp_path / "new" / "sheet.png")
    assert image.shape[1] > image.shape[0] > 400 and image[..., :3].std() > 0.05


@pytest.mark.parametrize("schemes, named", [
    ("rk5", "unknown scheme 'rk5'; choose from"), ("", "--schemes is empty; choose from"),
    ("explicit,euler", "'euler' stands twice"), ("rk4(gamma=1)", "unknown parameter 'gamma'"),
    ("adaptive", "none of the schemes 'adaptive' has a region")])
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


def test_analytic_tells_the_conjugate_in_r():
    drawable = [name for name in odenets.list_schemes() if regions.has_region(name)]
    assert "adaptive" not in drawable and len(drawable) > 9
    assert {name for name in drawable if not regions.analytic(name)} == {"ie_skip"}


def test_the_bold_line_is_where_r_has_modulus_one():
    ax = Figure().subplots()
    regions.draw_region(ax, "rk4", cloud={"0": [[-1.0, 0.5]]}, window=(-4, 1, -3.5, 3.5))
    boundary = next(c for c in ax.collections if list(getattr(c, "levels", [])) == [0.0])
    points = np.concatenate([path.vertices for path in boundary.get_paths()]) @ (1, 1j)
    assert np.abs(np.abs(odenets.get_scheme("rk4").amplification(points)) - 1).max() < 0.01
    assert points.real.min() == pytest.approx(-2.7853, abs=0.01)
    assert ax.get_xlim() == (-4, 1) and ax.get_aspect() == 1


def test_every_region_draws_in_its_own_window():
    for name in filter(regions.has_region, odenets.list_schemes()):
        regions.draw_region(Figure().subplots(), name)
