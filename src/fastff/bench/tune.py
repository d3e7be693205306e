"""Which sizes of launches are the fastest on the GPU at hand: `python -m fastff.bench.tune --out tune.json`.

One layer in bfloat16, as CUDA graphs, with each change of one or two sizes of `fastff.ops.triton.config`.
"""

import argparse
import itertools
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastff.bench.candidate import LayerCandidate
from fastff.bench.graph import graphed
from fastff.bench.group import Group
from fastff.bench.machine import machine, versions
from fastff.bench.measure import Subject
from fastff.bench.passes import BACKWARD, FORWARD, call_of, is_training, mode_of
from fastff.bench.settings import Settings
from fastff.bench.suites.layers import tree, ultra
from fastff.files import write_json
from fastff.ops.triton.config import use_config

SINGLE: dict[str, tuple[int, ...]] = {
    "tile": (32, 64, 128),
    "features": (32, 64, 128),
    "columns": (32, 64, 128),
    "levels": (4, 5, 6, 7),
    "warps": (4, 8),
    "stages": (2, 3, 4),
}
TOGETHER = (("tile", "warps"), ("features", "stages"))
ROUNDS = 5


def changes() -> list[dict[str, int]]:
    """None, every change of one size, and of those that go together."""
    found: list[dict[str, int]] = [{}]
    found += [{name: value} for name, values in SINGLE.items() for value in values]
    for names in TOGETHER:
        found += [
            dict(zip(names, values, strict=True)) for values in itertools.product(*(SINGLE[name] for name in names))
        ]
    return [dict(items) for items in dict.fromkeys(tuple(change.items()) for change in found)]


def measure(candidate: LayerCandidate, kind: str, s: Settings, tokens: int, change: dict[str, int]) -> float:
    """Seconds of a call, the median of a few rounds."""
    with use_config(**change):
        module = candidate.build(training=is_training(kind))
        rotation = Group(kind, tokens, [candidate]).rotation(s, candidate.dtype)
        call = call_of(kind, module)
        subject = Subject(graphed(call) if s.device == "cuda" else call, rotation, 1e-3)
        with mode_of(kind):
            subject.run(len(rotation))  # compiles and captures
            subject.calibrate()
            for _ in range(ROUNDS):
                subject.sample_warm()
    return median(subject.samples)


def tune(s: Settings, tokens: int, path: Path, tried: list[dict[str, int]], *, backward: bool) -> dict[str, Any]:
    """Try every change and write what was measured to `path`, as it comes; `backward` takes several times as long."""
    rows: list[dict[str, Any]] = []
    found = {"versions": versions(), "machine": machine(), "settings": s.to_json(), "tokens": tokens, "rows": rows}
    subjects = [(ultra(s, torch.bfloat16), FORWARD)]
    if backward:
        wide = tree(s, s.depth, 1, "exact", dtype=torch.bfloat16)
        subjects += [(ultra(s, torch.bfloat16), BACKWARD), (wide, BACKWARD)]
    for candidate, kind in subjects:
        for change in tried:
            try:
                seconds, reason = measure(candidate, kind, s, tokens, change), None
            except Exception as error:  # too much shared memory, say: the others go on
                seconds, reason = None, f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append({"candidate": candidate.label, "pass": kind, **change, "seconds": seconds, "reason": reason})
            write_json(path, found)
        best = sorted((row for row in rows[-len(tried) :] if row["seconds"]), key=lambda row: row["seconds"])
        for row in best[:3]:
            sizes = {name: row[name] for name in SINGLE if name in row}
            print(f"{candidate.label}, {kind}: {1e6 * row['seconds']:8.1f} us {sizes or 'as it is'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tune.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--backward", action="store_true", help="training too, which takes many minutes to compile")
    arguments = parser.parse_args()
    settings = Settings(device=arguments.device)
    with torch.device(arguments.device):
        tune(settings, arguments.tokens, arguments.out, changes(), backward=arguments.backward)


if __name__ == "__main__":
    main()
