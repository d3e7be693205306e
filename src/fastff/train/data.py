"""Classification data by name, as tensors in memory: images as bytes, vectors as float32."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SPLITS = ("train", "validation", "test")
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_INPUT_NAMES = ("image", "img", "pixel_values", "features", "x")
_LABEL_NAMES = ("label", "labels", "target", "y", "fine_label")
_MOST_CLASSES = 2**20  # an integer column that goes further holds identifiers or measurements
_CACHE_ABOVE = 5_000  # samples; fewer images decode in about the time it takes to read a cache file
_CACHE_FORMAT = 1


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes: `inputs` (n, C, H, W) uint8 or (n, features) float32, `labels` (n,) int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Data:
    """Three splits of one data set, with the statistics of its training split.

    `labels` lie in [0, classes), and `class_names` has one name for each. `mean` and `std` are float32 and come from
    `train` alone: for images per channel, (C, 1, 1), on the scale 0..1; for vectors per feature, (features,). What
    is constant has a `std` of 1.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) or (features,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def features(self) -> int:
        """Numbers in one sample: the product of `shape`."""
        return math.prod(self.shape)

    def normalise(self, inputs: Tensor) -> Tensor:
        """A batch (n, *shape) of raw inputs -> float32 on the same device, less `mean`, by `std`."""
        scaled = inputs.float() / 255 if self.train.inputs.dtype == torch.uint8 else inputs.float()
        return (scaled - self.mean.to(inputs.device)) / self.std.to(inputs.device)


def load_data(
    name: str,
    *,
    input_column: str | None = None,
    label_column: str | None = None,
    validation: int | float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Loads a classification data set into memory.

    `name` is "digits" (scikit-learn's 1,797 images of 8x8, always in the same 1,200 / 240 / 357 samples; it has no
    columns to choose), a local folder or .parquet, .csv, .json or .jsonl file, or a hub id.

    Columns: the input is the only image column, else one called image, img, pixel_values, features or x that holds
    images or lists of numbers, else all numeric columns but the label. The label is called label, labels, target, y
    or fine_label; it holds class numbers or names. Without a ClassLabel type, the training split says which classes
    there are.

    Splits: the last `validation` samples of the training split (an int: samples; a float in (0, 1): their share; by
    default 10 %, at most 5,000) become the validation split; only where `validation` is None and the data has both a
    validation and a test split is its own validation split used. Without a test split, the data's validation split is
    the test split; without either, the last 20 % of a permutation that never changes is. A training split sorted by
    label, as an image folder is, is first shuffled by `seed`, as its end would be one class; nothing else depends on
    `seed`, and the test split never does. `limit` then keeps the first samples of each split, before validation is
    cut.

    More than 5,000 images are kept decoded under $FASTFF_CACHE (by default ~/.cache/fastff).

    Raises DataError where the data cannot be loaded or used, ValueError for a `validation` or `limit` out of range.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit: {limit!r}; expected an integer of at least 1, or None")
    whole = isinstance(validation, int) and not isinstance(validation, bool) and validation >= 1
    if not (validation is None or whole or (isinstance(validation, float) and 0 < validation < 1)):
        raise ValueError(f"validation: {validation!r}; expected a number of samples (int, 1 or more) or a share (0..1)")
    splits, class_names = _digits() if name == "digits" else _load(name, input_column, label_column)
    train, kept, test = _divide(name, splits, validation, limit, seed)
    mean, std = _statistics(train.inputs)
    return Data(name, train, kept, test, len(class_names), class_names, mean, std)


def _divide(
    name: str, splits: dict[str, Split], validation: int | float | None, limit: int | None, seed: int
) -> tuple[Split, Split, Split]:
    train, kept, test = (splits.get(split) for split in _SPLITS)
    assert train is not None
    if test is None:
        test, kept = kept, None
    if test is None:
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
        cut = len(train) - max(1, len(train) // 5)
        train, test = train[:cut], train[cut:]
    elif (train.labels.diff() >= 0).all():
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
    train, test = train[:limit], test[:limit]
    if validation is None and kept is not None:
        return train, kept[:limit], test
    if len(train) < 2:
        raise DataError(f"data {name!r}: {len(train)} training samples; a validation split is cut from 2 or more")
    if validation is None:
        validation = max(1, min(5_000, len(train) // 10))
    size = max(1, round(validation * len(train))) if isinstance(validation, float) else validation
    if size >= len(train):
        raise ValueError(f"validation: {validation!r} leaves none of the {len(train)} training samples of {name!r}")
    return train[:-size], train[-size:], test


def _statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.dtype == torch.uint8:  # counts of the 256 values are exact, and need no float copy of the images
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in inputs.unbind(1)])
        share = counts.double() / counts.sum(1, keepdim=True)
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = share @ values
        std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
        constant = (counts > 0).sum(1) == 1
        mean, std, constant = (statistic[:, None, None] for statistic in (mean, std, constant))
    else:
        std, mean = torch.std_mean(inputs.double(), 0, correction=0)
        constant = (inputs == inputs[0]).all(0)
    std = std.float()
    return mean.float(), std.masked_fill(constant | (std == 0), 1.0)


def _digits() -> tuple[dict[str, Split], tuple[str, ...]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    data = Split(images, torch.from_numpy(bunch.target).long())
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]
    parts = {"train": data[:1200], "validation": data[1200:1440], "test": data[1440:]}
    return parts, tuple(map(str, range(10)))


def _load(name: str, input_column: str | None, label_column: str | None) -> tuple[dict[str, Split], tuple[str, ...]]:
    tables, place = _open(name)
    if "train" not in tables:
        raise DataError(f"data {name!r}: no training split; its splits are {', '.join(tables)}")
    tables = {split: tables[split] for split in _SPLITS if split in tables}
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"data {name!r}: split {split!r} is empty")
    label = _label_column(name, tables["train"], label_column)
    columns = _input_columns(name, tables["train"], input_column, label)
    for split, table in tables.items():
        if missing := {label, *columns} - set(table.column_names):
            raise DataError(f"data {name!r}: split {split!r} has no column {', '.join(sorted(missing))}")
    images = _is_image(tables["train"].features[columns[0]])
    if not images or sum(map(len, tables.values())) <= _CACHE_ABOVE:
        return _read(name, tables, columns, label, images)
    # A fingerprint of datasets covers the files' paths and times, or the hub's commit.
    key = [_CACHE_FORMAT, place, columns, label, {split: table._fingerprint for split, table in tables.items()}]
    folder = Path(os.environ.get("FASTFF_CACHE", "~/.cache/fastff")).expanduser() / "data"
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
    cached = _from_cache(path, tables)
    if cached is None:
        cached = _read(name, tables, columns, label, images)
        _to_cache(path, *cached)
    return cached


def _open(name: str) -> tuple[dict[str, Any], str]:
    """The splits of a file, folder or hub id as datasets, and where they are from."""
    import datasets

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or path.suffix in _BUILDERS or name.count("/") > 1
    if not name.strip() or (looks_local and not path.exists()):
        raise DataError(f"data {name!r}: no such file or folder")
    if path.is_file() and path.suffix not in _BUILDERS:
        raise DataError(f"data {name!r}: a file that ends in {path.suffix!r}; expected one of {', '.join(_BUILDERS)}")
    place = str(path.resolve()) if path.exists() else name
    datasets.disable_progress_bars()
    try:
        if path.is_file():
            return datasets.load_dataset(_BUILDERS[path.suffix], data_files=place), place
        return datasets.load_dataset(place), place
    except Exception as error:  # whatever datasets, a parser or the network raises, the name is what the user can mend
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(f"data {name!r}: cannot be loaded as a local path or a hub id: {reason}") from error


def _is_image(feature: Any) -> bool:
    """An image column, or one that would be but for its type's name: {"bytes": ..., "path": ...}."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def _label_column(name: str, table: Any, wanted: str | None) -> str:
    found = [column for column in ([wanted] if wanted else _LABEL_NAMES) if column in table.column_names]
    if not found:
        expected = f"label_column {wanted!r} is" if wanted else f"no label column: none of {', '.join(_LABEL_NAMES)} is"
        raise DataError(f"data {name!r}: {expected} not among its columns {', '.join(table.column_names)}")
    return found[0]


def _input_columns(name: str, table: Any, wanted: str | None, label: str) -> list[str]:
    types = table.features.arrow_schema
    others = [column for column in table.column_names if column != label]
    numeric = [column for column in others if _is_number(types.field(column).type)]
    pictures = [column for column in others if _is_image(table.features[column])]
    if wanted:
        found = [wanted] if wanted in others else []
    elif len(pictures) == 1:
        found = pictures
    else:
        nested = [column for column in _INPUT_NAMES if column in others and hasattr(types.field(column).type, "fields")]
        found = nested[:1] or ([] if pictures else numeric)
    if not found:
        what = f"input_column {wanted!r}" if wanted else "an image, vector or numeric column"
        raise DataError(f"data {name!r}: {what} is not among its columns {', '.join(others)} (label: {label})")
    return found
