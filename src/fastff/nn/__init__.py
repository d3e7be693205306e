"""The layers: modules that own parameters and call `fastff.ops`."""

from fastff.nn.auxiliary import auxiliary_loss
from fastff.nn.by_name import build_layer, parse_layer
from fastff.nn.feedforward import FeedForward
from fastff.nn.fff import FFF
from fastff.nn.grow import grow, start_growth
from fastff.nn.initialise import initialise_from_data
from fastff.nn.layer import FeedForwardLayer
from fastff.nn.load_fastfeedforward import load_fastfeedforward
from fastff.nn.moe import MoE, balance_experts
from fastff.nn.peer import PEER
from fastff.nn.quantize import quantize
from fastff.nn.routed import RoutedLayer
from fastff.nn.routing import ExpertRouting, TreeRouting
from fastff.nn.tree_feedforward import TreeFeedForward, merge_base
from fastff.nn.ultra_fff import UltraFFF

__all__ = [
    "FFF",
    "PEER",
    "ExpertRouting",
    "FeedForward",
    "FeedForwardLayer",
    "MoE",
    "RoutedLayer",
    "TreeFeedForward",
    "TreeRouting",
    "UltraFFF",
    "auxiliary_loss",
    "balance_experts",
    "build_layer",
    "grow",
    "initialise_from_data",
    "load_fastfeedforward",
    "merge_base",
    "parse_layer",
    "quantize",
    "start_growth",
]
