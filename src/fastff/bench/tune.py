"""Which sizes of launches are the fastest on the GPU at hand: `python -m fastff.bench.tune --out tune.json`.

One layer in bfloat16, as CUDA graphs, with each change of one size, or of one kind of launches, of
`fastff.ops.triton.config`.
"""

import argparse
import itertools
from dataclasses import asdict
from operator import itemgetter
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
from fastff.ops.triton.config import Launch, use_config
from fastff.runs.files import write_json

SIZES: dict[str, tuple[int, ...]] = {"tile": (32, 64, 128), "columns": (32, 64), "levels": (4, 5, 6, 7)}
LAUNCHES = [
    Launch(*sizes)
    for sizes in itertools.product((128, 256), (4, 8), (2, 3, 4))  # bytes of a row, warps, stages
]
FORWARD_LAUNCHES, BACKWARD_LAUNCHES = ("products", "sums"), ("gains", "outers")
LEARNED = (32, 64)
ROUNDS = 5

Change = dict[str, Any]


def changes(kind: str) -> list[Change]:
    """None, and every change of one size or of one kind of launches that a pass has of its own."""
    names = BACKWARD_LAUNCHES if is_training(kind) else FORWARD_LAUNCHES
    sizes = {"learned": LEARNED} if is_training(kind) else SIZES
    found: list[Change] = [{}]
    found += [{name: value} for name, values in sizes.items() for value in values]
    return found + [{name: launch} for name in names for launch in LAUNCHES]


def to_json(change: Change) -> dict[str, Any]:
    """Launches as dictionaries."""
    return {name: asdict(value) if isinstance(value, Launch) else value for name, value in change.items()}


def measure(candidate: LayerCandidate, kind: str, s: Settings, tokens: int, change: Change) -> float:
    """Seconds of a call, the median of a few rounds."""
    with use_config(**change):
        with torch.device(s.device):
            module = candidate.build(training=is_training(kind))
            rotation = Group(kind, tokens, [candidate]).rotation(s, candidate.dtype)
        call = call_of(kind, module)
        with mode_of(kind):
            graph = s.device == "cuda"
            timed = graphed(call, module, rotation.batches) if graph else call
            subject = Subject(timed, rotation, 1e-3, whole=graph)
            subject.run(len(rotation))  # compiles
            subject.calibrate()
            for _ in range(ROUNDS):
                subject.sample_warm()
    return median(subject.samples)


def tune(s: Settings, tokens: int, path: Path, *, backward: bool, tried: list[Change] | None = None) -> dict[str, Any]:
    """Try every change, or those given, and write what was measured to `path`, as it comes; `backward` takes several
    times as long.
    """
    rows: list[dict[str, Any]] = []
    with torch.device(s.device):
        about = machine()
    found = {"versions": versions(), "machine": about, "settings": s.to_json(), "tokens": tokens, "rows": rows}
    subjects = [(ultra(s, torch.bfloat16), FORWARD)]
    if backward:
        wide = tree(s, s.depth, 1, "exact", dtype=torch.bfloat16)
        subjects += [(ultra(s, torch.bfloat16), BACKWARD), (wide, BACKWARD)]
    for candidate, kind in subjects:
        own: list[tuple[float, Change]] = []
        for change in changes(kind) if tried is None else tried:
            try:
                seconds, reason = measure(candidate, kind, s, tokens, change), None
                own.append((seconds, to_json(change)))
            except Exception as error:  # too much shared memory, say: the others go on
                seconds, reason = None, f"{type(error).__name__}: {error}".splitlines()[0]
            row = {"candidate": candidate.label, "pass": kind, "change": to_json(change)}
            rows.append(row | {"seconds": seconds, "reason": reason})
            write_json(path, found)
        for seconds, change in sorted(own, key=itemgetter(0))[:3]:
            print(f"{candidate.label}, {kind}: {1e6 * seconds:8.1f} us {change or 'as it is'}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tune.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--backward", action="store_true", help="training too, which takes many minutes to compile")
    arguments = parser.parse_args()
    tune(Settings(device=arguments.device), arguments.tokens, arguments.out, backward=arguments.backward)


if __name__ == "__main__":
    main()
