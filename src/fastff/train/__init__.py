"""Training, comparison and reports: everything of `fastff train` and `fastff compare`, from Python."""

from fastff.nn import build_layer, parse_layer
from fastff.runs.interrupts import Interrupted
from fastff.train.config import TrainConfig
from fastff.train.data import Data, DataError, Split, load_data
from fastff.train.evaluation import Evaluation, evaluate
from fastff.train.loop import train
from fastff.train.models import MLP, VisionTransformer, build_model

__all__ = [
    "MLP",
    "Data",
    "DataError",
    "Evaluation",
    "Interrupted",
    "Split",
    "TrainConfig",
    "VisionTransformer",
    "build_layer",
    "build_model",
    "evaluate",
    "load_data",
    "parse_layer",
    "train",
]
