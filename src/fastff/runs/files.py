"""Files that are never half-written (a temporary neighbour first, then one rename), and folders with one writer."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n"))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` as safetensors, atomically; OSError if there is no room, as of any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        write_atomically(path, lambda p: save_file(tensors, p, metadata))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`; ValueError if it is damaged or holds something else."""
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return value


def lock_folder(folder: Path) -> IO[str]:
    """Keep other processes from writing to `folder` until the returned file is closed, or this process ends.

    Raises:
        ValueError: another process holds it.
    """
    file = (folder / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows has no such lock
        pass
    except OSError:
        file.close()
        raise ValueError(f"folder {str(folder)!r} is in use by another process") from None
    return file
