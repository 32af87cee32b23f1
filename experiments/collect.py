"""One page for a set of runs: their accuracies and verdicts side by side, with links, commands and environments.

    python experiments/collect.py runs/standard runs/pgd --out runs/collected

The runs may differ in training, schemes, fields, seeds and network. What was attacked otherwise, or on other images, is
refused; with --across data sets stand one below the other. --out receives collected.html, figures/ and tables/.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.harness.command import Parser, conclude, run_cli
from experiments.harness.report.collection import collection, grid, sentences, write_collection
from experiments.harness.run.config import CONFIG_VERSION
from experiments.harness.run.folder import read_config, read_run, saving
from odenets.errors import InputError


@run_cli
def main(argv: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    parser = Parser("collect.py", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run of compare_schemes.py or sweep_steps.py")
    parser.add_argument("--across", action="store_true", help="take several data sets, each with radii of its own")
    parser.add_argument("--out", help="folder of the page; default: a new one under runs/")
    args = parser.parse_args(argv)
    folders = [Path(folder) for folder in args.folders]
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places):
        if places.count(place) > 1:
            raise InputError(f"{folder} stands twice among the folders")
    out = Path(args.out or f"runs/collected-{time.strftime('%Y%m%d-%H%M%S')}")
    runs = {folder: read_run(folder) for folder in folders}
    older = [folder for folder in folders if read_config(folder / "config.json").get("version", 1) < CONFIG_VERSION]
    found = collection(runs, across=args.across, older=older)
    with saving(out / "collected.html"):
        out.mkdir(parents=True, exist_ok=True)
        write_collection(found, out)
    wide = grid(found).show(Console(), "Accuracy and verdicts, a run's own family each")
    conclude(wide, sentences(found), "Page", out / "collected.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
