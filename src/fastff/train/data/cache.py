"""Decoded splits in a file, since decoding images takes longer than reading them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from fastff.runs.files import write_tensors
from fastff.train.data.splits import Split


def from_cache(path: Path, splits: Iterable[str]) -> tuple[dict[str, Split], tuple[str, ...]] | None:
    """These splits and the class names; None if the file is absent or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = tuple(json.loads(file.metadata()["class_names"]))
            get = file.get_tensor
            parts = {split: Split(get(f"{split}.inputs"), get(f"{split}.labels")) for split in splits}
    except (OSError, KeyError, TypeError, ValueError, SafetensorError):
        return None
    return parts, names


def to_cache(path: Path, splits: dict[str, Split], class_names: Sequence[str]) -> None:
    """Write the file, if there is room for it."""
    tensors = {f"{split}.inputs": part.inputs for split, part in splits.items()}
    tensors |= {f"{split}.labels": part.labels for split, part in splits.items()}
    names = {"class_names": json.dumps(class_names)}
    with suppress(OSError):  # the data load without it, too
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, names)
