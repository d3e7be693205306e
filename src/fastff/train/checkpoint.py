"""Checkpoints of the full training state: written whole or not at all, the newest kept."""

import json
import shutil
from pathlib import Path
from typing import Any

from fastff.train.files import write_json

_PREFIX = "step-"


def save_checkpoint(accelerator: Any, folder: Path, step: int, progress: dict[str, Any]) -> None:
    """Write model, optimiser, schedule, generators and `progress` to `folder`/step-N, then drop older ones.

    Everything is written to a folder of another name first, which is then renamed: a checkpoint that has its name is
    whole, whenever the process is killed.
    """
    final = folder / f"{_PREFIX}{step:09d}"
    temporary = folder / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / "progress.json", progress)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in _checkpoints(folder)[:-1]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Any, folder: Path) -> dict[str, Any] | None:
    """Restore the newest checkpoint in `folder` and return its progress; None if there is none.

    Raises:
        ValueError: the checkpoint is damaged, or of another model.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    try:
        progress = json.loads((found[-1] / "progress.json").read_text())
        accelerator.load_state(str(found[-1]))
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"checkpoint {found[-1]} cannot be restored: {_first_line(error)}") from error
    return progress


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
