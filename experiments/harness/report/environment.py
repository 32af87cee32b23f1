"""What runs were made with, and whether that is what the records of the docs were made with."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.harness.run.certified import CertifyConfig
from experiments.harness.run.config import EvaluationConfig, RunConfig, migrated
from experiments.harness.run.schema import Record
from experiments.harness.words import count, listed

RECORDS = Path(__file__).parents[3] / "docs" / "records"  # in an installation there are none, and nothing is said
SAME = ("experiment", "dataset", "model", "training")
MOVES = ("torch", "torchvision", "torchdiffeq", "numpy", "platform", "gpu")  # whatever may change a figure

Config = RunConfig | EvaluationConfig | CertifyConfig


def made_with(config: Config) -> dict[str, str]:
    """Versions and machine of a run, as far as they are known, for a page."""
    return {key: str(value) for key, value in config.environment.items() if value is not None}


def departures(runs: Iterable[tuple[str, Config]]) -> list[str]:
    """A sentence for each environment that is not that of the records of the docs that ask the same.

    runs: (what sentences call it, its configuration) of each.
    """
    known = [
        (path.parent.name, migrated(json.loads(path.read_text("utf-8")))) for path in sorted(RECORDS.glob("*/config.json"))
    ]
    told: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for run, config in runs:
        own, now = config.to_json(), config.environment
        for record, other in known:
            before = other.get("environment") or {}
            differ = [key for key in MOVES if key in before and key in now and before[key] != now[key]]
            if differ and all(other.get(key) == own.get(key) for key in SAME):
                records, ours = told.setdefault((_named(before, differ), _named(now, differ)), ([], []))
                records.append(f"docs/records/{record}")
                ours.append(run)
    return [
        f"{listed(dict.fromkeys(records))} {'was' if len({*records}) == 1 else 'were'} made with {was}, "
        f"{listed(dict.fromkeys(ours))} with {this}. Other builds round otherwise, which training amplifies: single accuracies "
        "may differ by points from the figures of the docs."
        for (was, this), (records, ours) in told.items()
    ]


def elsewhere(runs: Iterable[tuple[str, Config, Sequence[Record]]]) -> list[str]:
    """A sentence for each environment that nets were made in, by their records, and that is not what the page says of the run.

    A run that was gone with in another environment, or on the nodes of a cluster, has nets of several.
    """
    told: dict[tuple[str, str, str], set[tuple]] = {}
    for run, config, records in runs:
        now = {**config.environment, "device": config.environment.get("gpu") or "cpu"}
        for record in records:
            for made in record.made:
                # A build's own suffix, as in 2.11.0+cpu, is not in the version that a package has.
                here = {key: version.split("+")[0] for key, version in made.versions.items()} | {"device": made.device}
                differ = [key for key in (*MOVES, "device") if key in here and key in now and here[key] != now[key]]
                if differ:
                    told.setdefault((run, _named(here, differ), _named(now, differ)), set()).add(record.key)
    return [
        f"{count(len(nets), 'net')} of {run} {'was' if len(nets) == 1 else 'were'} made, wholly or in part, with {was}, "
        f"and not with {this}: records.jsonl says which."
        for (run, was, this), nets in told.items()
    ]


def unlike(configs: Sequence[Config]) -> list[str]:
    """A sentence where the environments of runs differ among themselves."""
    known = [config.environment for config in configs]
    keys = dict.fromkeys(key for environment in known for key in environment)
    values = {key: list(dict.fromkeys(str(environment.get(key)) for environment in known)) for key in keys}
    differ = "; ".join(f"{key} {' and '.join(found)}" for key, found in values.items() if len(found) > 1)
    return [f"Environments differ ({differ}): compare across these runs with care."] if differ else []


def _named(environment: Mapping[str, object], keys: Iterable[str]) -> str:
    return listed(f"{key} {environment[key] or 'none'}" for key in keys)
