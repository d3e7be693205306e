"""Put finished runs of `fastff pretrain` into a table: python results/masked.py results/models/masked.json RUN ..."""

import json
import sys
from pathlib import Path
from typing import Any

from fastff.hf.recommended import with_options
from fastff.runs.files import write_json

GIVEN = ("model", "feedforward", "lr", "tokens", "seed")  # a later run of the same takes the place of the former


def read(run: Path) -> dict[str, Any]:
    """Settings, result and curve of a run."""
    settings, result = (json.loads((run / name).read_text()) for name in ("config.json", "result.json"))
    features = json.loads((run / "model" / "config.json").read_text())["hidden_size"]
    layer = with_options(settings["feedforward"], features, masked=True)
    settings |= {"feedforward": layer, "data": Path(settings["data"]).name}
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    curve = [{k: r[k] for k in ("tokens", "seconds", "validation_loss")} for r in records if "validation_loss" in r]
    return {"settings": settings, **result, "curve": curve}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run["settings"][name] for name in GIVEN)


def place(run: dict[str, Any]) -> tuple[str, int, float]:
    """In the table: by encoder and budget, the best first."""
    return run["settings"]["model"], run["settings"]["tokens"], run["validation_loss"]


def main() -> None:
    file, *new = map(Path, sys.argv[1:])
    known = json.loads(file.read_text())["runs"] if file.exists() else []
    runs = {key(run): run for run in [*known, *map(read, new)]}
    write_json(file, {"masked": True, "runs": sorted(runs.values(), key=place)})


if __name__ == "__main__":
    main()
