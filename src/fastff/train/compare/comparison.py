"""What a comparison is: candidates, each with trials of settings, over several seeds."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastff.nn import build_layer, parse_layer
from fastff.train.config import TrainConfig


@dataclass(frozen=True)
class Candidate:
    """One layer with one way of training it.

    Attributes:
        label: what the report calls it; unique in a comparison.
        layer: see `parse_layer`.
        trials: settings (of `TrainConfig`) to choose from; the one with the best mean validation accuracy counts.
        published: figures of the paper for this row, e.g. {"test_accuracy": 94.9, "source": "P1"}; empty if none.
    """

    label: str
    layer: str
    trials: tuple[dict[str, Any], ...]
    published: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Candidates trained alike and shown side by side.

    Attributes:
        name: of the preset.
        description: what is compared, for the report.
        base: settings of `TrainConfig` that all candidates share.
        candidates: the rows.
        seeds: runs of every trial.
    """

    name: str
    description: str
    base: dict[str, Any]
    candidates: tuple[Candidate, ...]
    seeds: int

    def __post_init__(self) -> None:
        labels = [c.label for c in self.candidates]
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels of candidates must be unique, got {labels}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


@dataclass(frozen=True)
class Run:
    """One training run of a comparison; its key names its folder and changes with any setting."""

    label: str
    trial: int
    config: TrainConfig

    @property
    def key(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode()).hexdigest()[:10]
        slug = "".join(c if c.isalnum() else "-" for c in self.label.lower()).strip("-")
        return f"{slug}_trial{self.trial}_seed{self.config.seed}_{digest}"

    def folder(self, root: Path) -> Path:
        return root / "runs" / self.key


def runs_of(comparison: Comparison) -> list[Run]:
    """All runs, seed by seed, so that an unfinished comparison has every row."""
    return [
        Run(c.label, trial, TrainConfig(**{**comparison.base, **settings, "layer": c.layer, "seed": seed}))
        for seed in range(comparison.seeds)
        for c in comparison.candidates
        for trial, settings in enumerate(c.trials)
    ]


def with_dense_baselines(
    candidates: tuple[Candidate, ...], trials: tuple[dict[str, Any], ...]
) -> tuple[Candidate, ...]:
    """Add, for every inference width among the candidates, the dense layer of that width: the fair question.

    Args:
        candidates: the rows so far; the width of a dense row among them that is trained the same way is not added.
        trials: of the added rows.
    """
    dense = {parse_layer(c.layer)[1]["width"] for c in candidates if c.layer.startswith("dense") and c.trials == trials}
    widths = sorted({build_layer(c.layer, 1).inference_width for c in candidates} - dense)
    return (*candidates, *(Candidate(f"dense {w}", f"dense:width={w}", trials) for w in widths))
