"""Checkpoints of the authors' `fastfeedforward` package, and of its fork with a master leaf."""

import os
from pathlib import Path

import torch
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
    try:
        return _build(_read(path), activation)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _build(state: dict[str, Tensor], activation: str) -> FFF:
    _require(state, _TREE, "no fastfeedforward checkpoint")
    master = any(name in state for name in _MASTER)
    if master:
        _require(state, _MASTER, "a checkpoint with half a master leaf")
    if state["w1s"].dim() != 3 or state["w2s"].dim() != 3 or not state["w1s"].is_floating_point():
        found = ", ".join(f"{name} {state[name].dtype} {tuple(state[name].shape)}" for name in ("w1s", "w2s"))
        raise ValueError(f"w1s and w2s must be floating point with 3 dimensions, got {found}")
    leaves, in_features, leaf_width = state["w1s"].shape
    depth = leaves.bit_length() - 1
    said = state.get("depth", torch.tensor(depth))
    if leaves != 2**depth or said.numel() != 1 or int(said) != depth:
        raise ValueError(f"{leaves} leaves do not fit depth {said.tolist()}")
    layer = FFF(
        in_features,
        state["w2s"].shape[2],
        depth=depth,
        leaf_width=leaf_width,
        activation=activation,
        master_width=state["magic_w1"].shape[-1] if master and state["magic_w1"].dim() else 0,
        dtype=state["w1s"].dtype,
    )
    I, O, M = layer.in_features, layer.out_features, layer.master_width
    ours = {
        "node_weight": state["node_weights"],
        "node_bias": _shaped(state, "node_biases", (2**depth - 1, 1)).squeeze(1),
        "leaf_w1": state["w1s"].transpose(1, 2),
        "leaf_b1": state["b1s"],
        "leaf_w2": state["w2s"],
        "leaf_b2": state["b2s"],
    }
    if master:
        ours |= {
            "master_w1": _shaped(state, "magic_w1", (1, I, M))[0].T,
            "master_b1": _shaped(state, "magic_b1", (1, M))[0],
            "master_w2": _shaped(state, "magic_w2", (1, M, O))[0],
            "master_b2": _shaped(state, "magic_b2", (1, O))[0],
            "master_gate": state["k"].reshape(-1),
        }
    try:
        layer.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"tensors do not fit together: {' '.join(str(error).split())}") from None
    return layer


def _require(state: dict[str, Tensor], names: tuple[str, ...], what: str) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{what}: it lacks {', '.join(missing)}")


def _shaped(state: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(state[name].shape) != shape:
        raise ValueError(f"{name} must be of shape {shape}, got {tuple(state[name].shape)}")
    return state[name]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"cannot be read as a checkpoint of tensors: {first_line}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"must hold a dictionary of tensors, got {type(state).__name__}")
    return state
