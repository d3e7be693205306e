"""Comparisons of layers: P1's protocol made honest."""

from fastff.train.compare.comparison import Candidate, Comparison, Run, runs_of, with_dense_baselines
from fastff.train.compare.presets import PRESETS, preset
from fastff.train.compare.runner import compare
from fastff.train.compare.summary import summarise

__all__ = [
    "PRESETS",
    "Candidate",
    "Comparison",
    "Run",
    "compare",
    "preset",
    "runs_of",
    "summarise",
    "with_dense_baselines",
]
