"""The folder of a run, described by its config.json: whether it may be used, and by whom."""

from pathlib import Path
from typing import IO

from fastff.runs.files import lock_folder, write_json
from fastff.runs.options import Settings


def is_finished(settings: Settings, folder: Path, resume: bool) -> bool:
    """Whether `folder` has the result.json of these settings; ValueError if it holds what cannot be resumed."""
    if not (folder / "config.json").exists():
        if (folder / "checkpoints").exists():
            raise ValueError(f"folder {str(folder)!r} holds checkpoints but no config.json: name another folder")
        return False
    if not resume:
        raise ValueError(f"folder {str(folder)!r} already holds a run: resume it, or name another folder")
    settings.check_same(folder)
    return (folder / "result.json").exists()


def claim_folder(settings: Settings, folder: Path) -> IO[str]:
    """Make the folder, with its config.json; returns its lock. ValueError if it cannot be written or is in use."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
        write_json(folder / "config.json", settings.to_dict())
    except OSError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from None
    return lock
