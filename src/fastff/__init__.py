"""Fast feedforward networks: layers whose inference cost grows with the logarithm of their width."""

from fastff.nn import (
    FFF,
    FeedForward,
    MoE,
    TreeFeedForward,
    UltraFFF,
    auxiliary_loss,
    grow,
    initialise_from_data,
    load_fastfeedforward,
    merge_base,
    start_growth,
)

__version__ = "0.1.0"

__all__ = [
    "FFF",
    "FeedForward",
    "MoE",
    "TreeFeedForward",
    "UltraFFF",
    "auxiliary_loss",
    "grow",
    "initialise_from_data",
    "load_fastfeedforward",
    "merge_base",
    "start_growth",
]
