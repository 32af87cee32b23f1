"""The command `odenets`: the experiments by their short names, from any folder; the same as their scripts."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "compare": "compare_schemes",
    "sweep": "sweep_steps",
    "evaluate": "evaluate",
    "map": "map_spectra",
    "regions": "plot_regions",
    "solvers": "compare_solvers",
    "relate": "relate",
    "share": "share",
    "certify": "certify",
    "reproduce": "reproduce_ie_skips",
    "collect": "collect",
}


def main(argv: Sequence[str] | None = None) -> int:
    """`odenets COMMAND ...`; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        import odenets

        print(f"odenets {odenets.__version__}")
        return 0
    if name not in COMMANDS:
        print(f"odenets: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return import_module(f"experiments.{COMMANDS[name]}").main(rest)


def _help() -> str:
    # Read, not imported: help must not wait for torch.
    import ast
    from pathlib import Path

    folder = Path(__file__).parents[1]
    titles = {
        name: (ast.get_docstring(ast.parse((folder / f"{script}.py").read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        for name, script in COMMANDS.items()
    }
    lines = [f"  {name:<10}{' '.join(title.split())}" for name, title in titles.items()]
    return "\n".join(["usage: odenets COMMAND ...; odenets COMMAND --help tells the rest", "", *lines])
