"""Fast feedforward networks: layers whose inference cost grows with the logarithm of their width."""

from importlib import import_module
from typing import Any

from fastff.nn import (
    FFF,
    PEER,
    FeedForward,
    MoE,
    TreeFeedForward,
    UltraFFF,
    auxiliary_loss,
    balance_experts,
    grow,
    initialise_from_data,
    load_fastfeedforward,
    merge_base,
    quantize,
    start_growth,
)

__version__ = "0.1.0"

__all__ = [
    "FFF",
    "PEER",
    "FeedForward",
    "MoE",
    "TreeFeedForward",
    "UltraFFF",
    "auxiliary_loss",
    "balance_experts",
    "grow",
    "initialise_from_data",
    "load_fastfeedforward",
    "merge_base",
    "quantize",
    "start_growth",
]

_ON_DEMAND = ("hf", "optim", "train")  # submodules whose import takes seconds: `fastff.optim` alone brings Dynamo in


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return import_module(f"fastff.{name}")
    raise AttributeError(f"module 'fastff' has no attribute {name!r}")
