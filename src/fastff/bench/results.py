"""The results of a suite: rows, what was left out and why, written to one JSON file as they come."""

from pathlib import Path
from typing import Any

from fastff.bench.candidate import Candidate
from fastff.bench.group import Group
from fastff.bench.machine import machine, versions
from fastff.bench.measure import summary
from fastff.bench.settings import Settings
from fastff.runs.files import write_json

Row = dict[str, Any]


class Results:
    """Rows of one suite, in `path`.

    Args:
        suite: its name; the file is called after it.
        folder: made if it does not exist.
        settings: written beside the rows.
    """

    def __init__(self, suite: str, folder: Path, settings: Settings) -> None:
        self.suite, self.settings = suite, settings
        self.path = folder / f"{suite}.json"
        self.rows: list[Row] = []
        self.left_out: list[Row] = []
        self.machine = machine()
        self.more: Row = {}  # what a suite makes of its rows
        self._head = {"versions": versions(), "machine": self.machine, "settings": settings.to_json()}
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, group: Group, cache: str, samples: list[tuple[Candidate, list[float]]]) -> None:
        """Add the rows of a group and write the file; `samples` are seconds a call.

        "ratio_to_dense" is how many times faster a row is than the base, "time_to_bound" its time in that of the bound.
        """
        found = [(candidate, seconds, summary(seconds)) for candidate, seconds in samples]
        base = next((s["median_s"] for candidate, _, s in found if candidate.base), None)
        bound = next((s["median_s"] for candidate, _, s in found if candidate.kind == "bound"), None)
        for candidate, seconds, times in found:
            self.rows.append(
                {
                    **self._name(group, candidate),
                    "executed": candidate.executed,
                    "dtype": candidate.dtype_name,
                    "threads": self.settings.threads,
                    "cache": cache,
                    **times,
                    "samples": len(seconds),
                    "ratio_to_dense": None if base is None else float(f"{base / times['median_s']:.4g}"),
                    "time_to_bound": None if bound is None else float(f"{times['median_s'] / bound:.4g}"),
                }
            )
        self.write()

    def leave_out(self, group: Group, candidate: Candidate, reason: str) -> None:
        """Note that a candidate was not measured."""
        self.left_out.append({**self._name(group, candidate), "reason": reason})
        self.write()

    def write(self) -> None:
        write_json(self.path, {**self._head, "rows": self.rows, "left_out": self.left_out, **self.more})

    def _name(self, group: Group, candidate: Candidate) -> Row:
        return {
            "suite": self.suite,
            "pass": group.kind,
            "candidate": candidate.label,
            "series": candidate.series,
            "kind": candidate.kind,
            "tokens": group.tokens,
            "width": candidate.width,
        }
