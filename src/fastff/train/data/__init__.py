"""Classification data by name, as tensors in memory: images as bytes, vectors as float32."""

from fastff.runs.open_data import DataError
from fastff.train.data.load import load_data
from fastff.train.data.splits import Data, Split

__all__ = ["Data", "DataError", "Split", "load_data"]
