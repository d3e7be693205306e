"""The folder of a run: who may write to it, and what is finished in it."""

import json
from pathlib import Path
from typing import IO, Any

from fastff.files import lock_folder, write_json
from fastff.hf.pretrain.config import PretrainConfig


def finished(config: PretrainConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """The result of the run in `folder` if it is finished; ValueError if the folder holds what cannot be resumed."""
    if not (folder / "config.json").exists():
        if (folder / "checkpoints").exists():
            raise ValueError(f"folder {str(folder)!r} holds checkpoints but no config.json: name another folder")
        return None
    if not resume:
        raise ValueError(f"folder {str(folder)!r} already holds a run: resume it, or name another folder")
    config.check_same(folder)
    path = folder / "result.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def claim(config: PretrainConfig, folder: Path) -> IO[str]:
    """Make the folder, with its config.json; returns its lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        write_json(folder / "config.json", config.to_dict())
    except OSError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from None
    return lock
