"""Which checkpoint of Trainer a run goes on from."""

import json
import shutil
from pathlib import Path

from fastff.hf.pretrain.schedule import Progress

PROGRESS = "progress.json"  # the last file to be written: a checkpoint that has it is whole


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, None if there is none."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{PROGRESS}")]
    return max(whole, key=_step, default=None)


def drop_partial(folder: Path) -> None:
    """Remove what a killed process had begun to write, which Trainer would count among the newest two."""
    for path in folder.glob("checkpoint-*"):
        if not (path / PROGRESS).exists():
            shutil.rmtree(path)


def read_progress(checkpoint: Path, progress: Progress) -> None:
    """Set `progress` to where the checkpoint is.

    Raises:
        ValueError: the file is damaged, or the run had another number of processes.
    """
    path = checkpoint / PROGRESS
    try:
        values = json.loads(path.read_text())
        if values.keys() != progress.to_dict().keys():
            raise ValueError(f"it holds {', '.join(values)}")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if values["unit"] != progress.unit:
        was, now = (unit // progress.config.batch_size for unit in (values["unit"], progress.unit))
        raise ValueError(f"the run must be resumed with as many processes as before, {was}, got {now}")
    for name, value in values.items():
        setattr(progress, name, value)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
