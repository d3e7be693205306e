"""Checkpoints of the authors' `fastfeedforward` package, and of its fork with a master leaf."""

import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastff.nn.fff import FFF

_TREE = ("node_weights", "node_biases", "w1s", "b1s", "w2s", "b2s")
_MASTER = ("magic_w1", "magic_b1", "magic_w2", "magic_b2", "k")


def load_fastfeedforward(path: str | os.PathLike[str], *, activation: str = "relu") -> FFF:
    """Load a checkpoint of the authors' `fastfeedforward` package, or of the P3 fork with a master leaf, as an `FFF`.

    Args:
        path: a state dict: `.safetensors`, or a file of `torch.save`, of which only tensors are unpickled
            (`weights_only=True`), whatever device they were saved on.
        activation: of the leaves; the file does not tell (the package's default is ReLU).

    Returns:
        The layer, dtype as in the file, on the CPU. Counters in the file (node_usage, leaf_usage, f) are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint: damaged, a tensor missing, or shapes that do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must name a checkpoint file, got {str(path)!r}, which is none")
    state = _read(path)
    missing = [name for name in _TREE if name not in state]
    if missing:
        raise ValueError(f"{path} is no fastfeedforward checkpoint: it lacks {', '.join(missing)}")
    if any(name in state for name in _MASTER):
        missing = [name for name in _MASTER if name not in state]
        if missing:
            raise ValueError(f"{path} has a master leaf, but lacks {', '.join(missing)}")
    if state["w1s"].dim() != 3 or state["w2s"].dim() != 3:
        raise ValueError(
            f"{path}: w1s and w2s must have 3 dimensions, got {tuple(state['w1s'].shape)}, {tuple(state['w2s'].shape)}"
        )
    leaves, in_features, leaf_width = state["w1s"].shape
    depth = leaves.bit_length() - 1
    if leaves != 2**depth or ("depth" in state and int(state["depth"]) != depth):
        raise ValueError(f"{path}: {leaves} leaves do not fit depth {int(state.get('depth', depth))}")
    layer = FFF(
        in_features,
        state["w2s"].shape[2],
        depth=depth,
        leaf_width=leaf_width,
        activation=activation,
        master_width=state["magic_w1"].shape[-1] if "magic_w1" in state else 0,
        dtype=state["w1s"].dtype,
    )
    ours = {
        "node_weight": state["node_weights"],
        "node_bias": state["node_biases"].squeeze(-1),
        "leaf_w1": state["w1s"].transpose(1, 2),
        "leaf_b1": state["b1s"],
        "leaf_w2": state["w2s"],
        "leaf_b2": state["b2s"],
    }
    if layer.master_width:
        ours |= {
            "master_w1": state["magic_w1"].squeeze(0).T,
            "master_b1": state["magic_b1"].flatten(),
            "master_w2": state["magic_w2"].squeeze(0),
            "master_b2": state["magic_b2"].flatten(),
            "master_gate": state["k"].reshape(()),
        }
    try:
        layer.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"{path}: tensors do not fit together: {error}") from error
    return layer


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {first_line}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}")
    return state
