"""Trained models, read back from the folder of their run."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastff.train.config import TrainConfig
from fastff.train.data import Data
from fastff.train.models import build_model


def load_model(folder: str | Path, data: Data) -> nn.Module:
    """The model of the run in `folder`, with the weights of its best epoch, in eval mode.

    Args:
        folder: of a run of `train`: config.json and model.safetensors.
        data: whose shape and classes the model was trained for.

    Raises:
        ValueError: a file is missing or damaged, or the weights are those of another model or other data.
    """
    folder = Path(folder)
    config = TrainConfig.read(folder / "config.json")
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    model = build_model(config.model, data.shape, data.classes, config.layer)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} does not fit {config.layer!r} on data {data.name!r}: {detail}") from None
    return model.eval()
