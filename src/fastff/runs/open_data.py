"""Data sets by name, through `datasets`: local files and folders, and ids of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong and where."""


def string_columns(table: Any) -> list[str]:
    """The columns of a data set that hold strings."""
    import datasets

    return [
        column
        for column, feature in table.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]


def open_data(name: str) -> tuple[dict[str, Any], str]:
    """The splits of a file, folder or hub id as memory-mapped data sets, and where they are from.

    The place is an absolute path or the hub id. A .txt file is one row, with the column `text`: a document. From now on
    `datasets` shows no progress bars. Raises DataError where the data cannot be loaded.
    """
    import datasets

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or path.suffix in _BUILDERS or name.count("/") > 1
    if not name.strip() or (looks_local and not path.exists()):
        raise DataError(f"data {name!r}: no such file or folder")
    if path.is_file() and path.suffix not in _BUILDERS:
        raise DataError(f"data {name!r}: a file that ends in {path.suffix!r}; expected one of {', '.join(_BUILDERS)}")
    place = str(path.resolve()) if path.exists() else name
    source, options = (_BUILDERS[path.suffix], {"data_files": place}) if path.is_file() else (place, {})
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(source, **options)
        if next(iter(found.values())).builder_name == "text":  # known only now; no other builder takes `sample_by`
            found = datasets.load_dataset(source, **options, sample_by="document")
    except Exception as error:  # whatever datasets, a parser or the network raises, the name is what the user can mend
        cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise DataError(f"data {name!r}: cannot be loaded as a local path or a hub id: {reason}") from error
    return found, place
