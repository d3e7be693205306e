"""Trained models in the folder of their run: the weights, and how the data of the training were normalised."""

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from fastff.runs.files import write_tensors
from fastff.train.config import TrainConfig
from fastff.train.data import Data
from fastff.train.models import build_model

_FILE = "model.safetensors"


def save_model(folder: Path, model: nn.Module, data: Data) -> None:
    """Write the weights of `model`, and how `data` are normalised, to `folder`, atomically."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    tensors |= {"data.mean": data.mean, "data.std": data.std}
    names = {"class_names": json.dumps(data.class_names)}
    write_tensors(folder / _FILE, tensors, names)


def load_model(folder: str | Path, data: Data) -> tuple[nn.Module, Data]:
    """The model of the run in `folder`, in eval mode, and `data` as that model wants them normalised.

    Args:
        folder: of a run of `train`: config.json and model.safetensors.
        data: of the shape and the classes that the model was trained for.

    Raises:
        ValueError: a file is missing or damaged, or the weights are those of another model or other data.
    """
    folder = Path(folder)
    config = TrainConfig.read(folder / "config.json")
    model = build_model(config.model, data.shape, data.classes, config.layer)
    return model.eval(), load_weights(folder, model, data)


def load_weights(folder: Path, model: nn.Module, data: Data) -> Data:
    """Load the weights in `folder` into `model`; returns `data` with the normalisation of its training data.

    Raises:
        ValueError: the file is missing or damaged, or does not fit `model` or `data`.
    """
    path = folder / _FILE
    try:
        with safe_open(path, "pt") as file:
            names = tuple(json.loads((file.metadata() or {})["class_names"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        mean, std = tensors.pop("data.mean"), tensors.pop("data.std")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except KeyError as error:
        raise ValueError(f"{path} was not written by fastff: it lacks {error}") from None
    if names != data.class_names:
        raise ValueError(f"{path} does not fit data {data.name!r}: its classes are {names}, not {data.class_names}")
    if mean.shape != data.mean.shape:
        raise ValueError(
            f"{path} does not fit data {data.name!r}: mean of shape {tuple(mean.shape)}, not {tuple(data.mean.shape)}"
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit its settings and data {data.name!r}: {str(error).splitlines()[1].strip()}"
        ) from None
    return dataclasses.replace(data, mean=mean, std=std)
