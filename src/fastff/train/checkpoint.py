"""Checkpoints of the full training state: written whole or not at all, the newest kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from fastff.runs.files import write_atomically, write_json, write_tensors

Progress = TypeVar("Progress")

_PREFIX = "step-"
_BEST = "model.safetensors"  # of the run: the weights of the best epoch so far


def save_checkpoint(accelerator: Any, folder: Path, name: str, progress: dict[str, Any]) -> None:
    """Write the state to `folder`/checkpoints/step-`name`, then drop older ones.

    Model, optimiser and schedule (by Accelerate), generators, the run's best weights and `progress` are written to a
    folder of another name first, which is then renamed: a checkpoint that has its name is whole, whenever the process
    is killed.

    Args:
        accelerator: with the prepared model and optimiser.
        folder: of the run.
        name: sorts after the names of all earlier checkpoints, and differs from them.
        progress: for JSON.
    """
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"{_PREFIX}{name}"
    temporary = checkpoints / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    # Not as safetensors: Accelerate would leave out tensors without elements, as a tree of depth 0 has, as "shared".
    accelerator.save_state(str(temporary), safe_serialization=False)
    write_tensors(temporary / f"generators-{accelerator.process_index}.safetensors", _generators())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if (folder / _BEST).exists():
            shutil.copy(folder / _BEST, temporary / "best.safetensors")
        write_json(temporary / "progress.json", progress)
        os.rename(temporary, final)
        for old in _checkpoints(checkpoints)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Any, folder: Path, progress_type: Callable[..., Progress]) -> Progress:
    """Restore the newest checkpoint of the run in `folder` and return its progress; a new one if there is none.

    Raises:
        ValueError: the checkpoint is damaged, or of another model or version of this package.
    """
    found = _checkpoints(folder / "checkpoints")
    if not found:
        return progress_type()
    newest = found[-1]
    try:
        progress = progress_type(**json.loads((newest / "progress.json").read_text()))
        accelerator.load_state(str(newest))
        _set_generators(load_file(newest / f"generators-{accelerator.process_index}.safetensors"))
        if accelerator.is_main_process and (newest / "best.safetensors").exists():
            write_atomically(folder / _BEST, lambda path: shutil.copy(newest / "best.safetensors", path))
    except Exception as error:  # whatever a damaged file makes the readers raise
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(f"checkpoint {newest} cannot be restored: {type(error).__name__}: {first_line}") from error
    return progress


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())


def _generators() -> dict[str, torch.Tensor]:
    """The states of PyTorch's generators, the only ones that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
