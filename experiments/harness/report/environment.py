"""Whether a run was made with what the records of the docs were made with."""

import json
from pathlib import Path

from experiments.harness.run.config import EvaluationConfig, RunConfig, migrated
from experiments.harness.words import listed

RECORDS = Path(__file__).parents[3] / "docs" / "records"  # in an installation there are none, and nothing is said
SAME = ("experiment", "dataset", "model", "training")
MOVES = ("torch", "torchvision", "torchdiffeq", "numpy", "platform", "gpu")  # whatever may change a figure


def departures(config: RunConfig | EvaluationConfig) -> list[str]:
    """A sentence for each record of the docs of the same question that was made with another environment."""
    own, told = config.to_json(), []
    for path in sorted(RECORDS.glob("*/config.json")):
        other = migrated(json.loads(path.read_text(encoding="utf-8")))
        if any(other.get(key) != own.get(key) for key in SAME) or not other.get("environment"):
            continue
        before, now = other["environment"], own["environment"]
        differ = [key for key in MOVES if key in before and key in now and before[key] != now[key]]
        if differ:
            was, this = (listed(f"{key} {known[key] or 'none'}" for key in differ) for known in (before, now))
            told.append(
                f"docs/records/{path.parent.name} was made with {was}; this is {this}. Other builds round otherwise, which "
                "training amplifies: single accuracies may differ by points from the figures of the docs."
            )
    return told
