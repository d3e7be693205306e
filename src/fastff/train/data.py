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

from fastff.files import write_atomically
from fastff.open_data import DataError, open_data

_SPLITS = ("train", "validation", "test")
_INPUT_NAMES = ("image", "img", "pixel_values", "features", "x")
_LABEL_NAMES = ("label", "labels", "target", "y", "fine_label")
_MOST_CLASSES = 2**20  # an integer column that goes further holds identifiers or measurements
_CACHE_ABOVE = 5_000  # samples; fewer images decode in about the time it takes to read a cache file
_CACHE_FORMAT = 1


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
    images or lists of numbers, else all numeric columns but the label (what else a CSV file has is left out; in other
    files, which may be meant for text, it is an error). The label is called label, labels, target, y or fine_label;
    it holds class numbers or names. Without a ClassLabel type, the training split says which classes there are.

    Splits: the last `validation` samples of the training split (an int: samples; a float in (0, 1): their share; by
    default 10 %, at most 5,000) become the validation split; only where `validation` is None and the data has both a
    validation and a test split is its own validation split used. Without a test split, the data's validation split is
    the test split; without either, the last 20 % of a permutation that never changes is. A training split sorted by
    label, as an image folder is, is first shuffled by `seed`, as its end would be one class; nothing else depends on
    `seed`, and the test split never does. `limit` then keeps the first samples of the training split, before validation
    is cut.

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
    train = train[:limit]
    if validation is None and kept is not None:
        return train, kept, test
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
    """The splits that the data has, decoded and checked, and the class names."""
    found, place = open_data(name)
    tables = {split: found[split] for split in _SPLITS if split in found}
    if "train" not in tables:
        raise DataError(f"data {name!r}: no training split; its splits are {', '.join(found)}")
    columns, label = _columns(name, tables["train"], input_column, label_column)
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"data {name!r}: split {split!r} is empty")
        if missing := {label, *columns} - set(table.column_names):
            raise DataError(f"data {name!r}: split {split!r} has no column {', '.join(sorted(missing))}")
    images = _is_image(tables["train"].features[columns[0]])
    path = None
    if images and sum(map(len, tables.values())) > _CACHE_ABOVE:
        # A fingerprint of datasets covers the files' paths and times, or the hub's commit.
        key = [_CACHE_FORMAT, place, columns, label, {split: table._fingerprint for split, table in tables.items()}]
        folder = Path(os.environ.get("FASTFF_CACHE", "~/.cache/fastff")).expanduser() / "data"
        path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
        if (cached := _from_cache(path, tables)) is not None:
            return cached
    labels, class_names = _labels(name, tables, label)
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        like = splits["train"].inputs if splits else None
        where = f"data {name!r}, split {split!r}"
        inputs = _images(table, columns[0], like, where) if images else _vectors(table, columns, where)
        if like is not None and inputs.shape[1:] != like.shape[1:]:
            shapes = f"{tuple(inputs.shape[1:])}; those of the training split {tuple(like.shape[1:])}"
            raise DataError(f"{where}, row 0: samples have the shape {shapes}")
        splits[split] = Split(inputs, labels[split])
    if path is not None:
        _to_cache(path, splits, class_names)
    return splits, class_names


def _is_image(feature: Any) -> bool:
    """An image column, or one that would be but for its type's name: {"bytes": ..., "path": ...}."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def _columns(name: str, table: Any, input_column: str | None, label_column: str | None) -> tuple[list[str], str]:
    """The input columns and the label column: those asked for, or those that `load_data` describes."""
    import datasets

    features, schema = table.features, table.features.arrow_schema
    label = next((column for column in ([label_column] if label_column else _LABEL_NAMES) if column in features), None)
    if label is None:
        what = f"label_column {label_column!r}" if label_column else f"a label column ({', '.join(_LABEL_NAMES)})"
        raise DataError(f"data {name!r}: {what} is not among its columns {', '.join(features)}")
    others = [column for column in features if column != label]
    images = [column for column in others if _is_image(features[column])]
    nested = [c for c in _INPUT_NAMES if c in others and not isinstance(features[c], datasets.Value)]
    if input_column:
        found = [column for column in others if column == input_column]
    elif len(images) == 1 or nested:
        found = images if len(images) == 1 else nested[:1]
    else:
        numeric = [column for column in others if _is_number(schema.field(column).type)]
        found = numeric if table.builder_name == "csv" or numeric == others else []
    if not found:
        what = (
            f"input_column {input_column!r}"
            if input_column
            else "one image or vector column, or numeric columns alone,"
        )
        raise DataError(f"data {name!r}: {what} is not among its columns {', '.join(others)} (label: {label})")
    return found, label


def _labels(name: str, tables: dict[str, Any], column: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    raw = {split: _arrow(table, column).to_pylist() for split, table in tables.items()}
    usable = [v for v in raw["train"] if isinstance(v, str) or (isinstance(v, int | float) and v % 1 == 0)]
    if not usable:
        kind = tables["train"].features.arrow_schema.field(column).type
        raise DataError(f"data {name!r}: label column {column!r} holds {kind}; expected whole numbers or strings")
    by_name = isinstance(usable[0], str)
    names = getattr(tables["train"].features[column], "names", None)
    if names is None:
        count = 0 if by_name else min(int(max(usable)) + 1, _MOST_CLASSES)
        names = sorted(set(usable)) if by_name else [str(index) for index in range(count)]
    numbers = {known: index for index, known in enumerate(names if by_name else range(len(names)))}
    expected = "a name that the training split has" if by_name else f"a whole number from 0 to {len(names) - 1}"
    for split, values in raw.items():
        for row, value in enumerate(values):
            if value not in numbers:
                where = f"data {name!r}, split {split!r}, row {row}"
                raise DataError(f"{where}: label {value!r} in column {column!r}; expected {expected}")
    return {split: torch.tensor([numbers[value] for value in raw[split]]) for split in raw}, tuple(names)


def _images(table: Any, column: str, like: Tensor | None, where: str) -> Tensor:
    """(n, C, H, W) uint8: grey if `like`, or without it the first image, is; else RGB."""
    import datasets
    import numpy as np

    grey = None if like is None else like.shape[1] == 1
    rows = iter(table.select_columns(column).cast_column(column, datasets.Image()))
    pixels: np.ndarray = np.empty(0, np.uint8)
    for row in range(len(table)):
        try:
            image = next(rows)[column]
            if image is None or image.mode[0] in "IF":
                raise ValueError(f"{'no image' if image is None else f'mode {image.mode}'}; expected 8-bit channels")
            grey = image.mode == "L" if grey is None else grey
            if image.mode == "P":  # straight to RGB, Pillow warns of a palette with transparency
                image = image.convert("RGBA")
            sample = np.asarray(image.convert("L" if grey else "RGB"))
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            raise DataError(f"{where}, row {row}: column {column!r} has no usable image: {error}") from error
        if row == 0:
            pixels = np.empty((len(table), *sample.shape), np.uint8)
        if sample.shape != pixels.shape[1:]:
            sizes = f"{sample.shape[0]}x{sample.shape[1]} pixels; row 0 has {pixels.shape[1]}x{pixels.shape[2]}"
            raise DataError(f"{where}, row {row}: an image of {sizes} (height x width)")
        pixels[row] = sample
    images = torch.from_numpy(pixels)
    return images[:, None] if grey else images.permute(0, 3, 1, 2).contiguous()


def _vectors(table: Any, columns: list[str], where: str) -> Tensor:
    """(n, features) float32: the columns side by side, nested lists flattened."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    parts = []
    for column in columns:
        array, width = _arrow(table, column), 1
        while not _is_number(array.type):
            if isinstance(array.type, pa.BaseExtensionType):  # datasets' Array2D and the like
                array = array.storage
            if not any(test(array.type) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
                raise DataError(f"{where}: column {column!r} holds {array.type}; expected numbers or lists of them")
            lengths = torch.tensor(pc.fill_null(pc.list_value_length(array), 0).to_pylist())
            odd = (lengths != lengths[0]) | (lengths == 0)
            if odd.any():
                row = int(odd.int().argmax())
                raise DataError(
                    f"{where}, row {row // width}: column {column!r} has a list of {lengths[row]} values; "
                    f"expected as many as in row 0, {lengths[0]}, and at least 1"
                )
            array, width = array.flatten(), width * int(lengths[0])
        part = torch.tensor(array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)).view(-1, width)
        bad = (~part.isfinite()).nonzero()
        if len(bad):
            row, index = bad[0].tolist()
            raise DataError(
                f"{where}, row {row}: column {column!r}, index {index}, is {part[row, index]}; "
                "expected a finite float32 number (a missing one reads as nan)"
            )
        parts.append(part)
    return torch.cat(parts, 1)


def _arrow(table: Any, column: str) -> Any:
    return table.select_columns(column).with_format("arrow")[:][column].combine_chunks()


def _from_cache(path: Path, splits: Iterable[str]) -> tuple[dict[str, Split], tuple[str, ...]] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = tuple(json.loads(file.metadata()["class_names"]))
            get = file.get_tensor
            parts = {split: Split(get(f"{split}.inputs"), get(f"{split}.labels")) for split in splits}
    except (OSError, KeyError, TypeError, ValueError, SafetensorError):  # absent or damaged: decoded again
        return None
    return parts, names


def _to_cache(path: Path, splits: dict[str, Split], class_names: Sequence[str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"{split}.inputs": part.inputs for split, part in splits.items()}
    tensors |= {f"{split}.labels": part.labels for split, part in splits.items()}
    names = {"class_names": json.dumps(class_names)}
    with suppress(OSError, SafetensorError):  # without room for a cache, the data still load
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda p: save_file(tensors, p, names))
