"""Tables of the datasets library -> tensors: which columns, which classes, which splits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastff.runs.open_data import DataError, open_data
from fastff.train.data.cache import from_cache, to_cache
from fastff.train.data.inputs import arrow, is_image, is_number, read_images, read_vectors
from fastff.train.data.splits import Split

SPLITS = ("train", "validation", "test")
_INPUT_NAMES = ("image", "img", "pixel_values", "features", "x")
_LABEL_NAMES = ("label", "labels", "target", "y", "fine_label")
_MOST_CLASSES = 2**20  # an integer column that goes further holds identifiers or measurements
_CACHE_ABOVE = 5_000  # samples; fewer images decode in about the time it takes to read a cache file
_CACHE_FORMAT = 1


def read_tables(
    name: str, input_column: str | None, label_column: str | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits that the data has, decoded and checked, and the class names."""
    found, place = open_data(name)
    tables = {split: found[split] for split in SPLITS if split in found}
    if "train" not in tables:
        raise DataError(f"data {name!r}: no training split; its splits are {', '.join(found)}")
    columns, label = _columns(name, tables["train"], input_column, label_column)
    for split, table in tables.items():
        if not len(table):
            raise DataError(f"data {name!r}: split {split!r} is empty")
        if missing := {label, *columns} - set(table.column_names):
            raise DataError(f"data {name!r}: split {split!r} has no column {', '.join(sorted(missing))}")
    images = is_image(tables["train"].features[columns[0]])
    path = None
    if images and sum(map(len, tables.values())) > _CACHE_ABOVE:
        # A fingerprint of datasets covers the files' paths and times, or the hub's commit.
        key = [_CACHE_FORMAT, place, columns, label, {split: table._fingerprint for split, table in tables.items()}]
        folder = Path(os.environ.get("FASTFF_CACHE", "~/.cache/fastff")).expanduser() / "data"
        path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
        if (cached := from_cache(path, tables)) is not None:
            return cached
    labels, class_names = _labels(name, tables, label)
    splits: dict[str, Split] = {}
    for split, table in tables.items():
        like = splits["train"].inputs if splits else None
        where = f"data {name!r}, split {split!r}"
        inputs = read_images(table, columns[0], like, where) if images else read_vectors(table, columns, where)
        if like is not None and inputs.shape[1:] != like.shape[1:]:
            shapes = f"{tuple(inputs.shape[1:])}; those of the training split {tuple(like.shape[1:])}"
            raise DataError(f"{where}, row 0: samples have the shape {shapes}")
        splits[split] = Split(inputs, labels[split])
    if path is not None:
        to_cache(path, splits, class_names)
    return splits, class_names


def _columns(name: str, table: Any, input_column: str | None, label_column: str | None) -> tuple[list[str], str]:
    """The input columns and the label column: those asked for, or those that `load_data` describes."""
    import datasets

    features, schema = table.features, table.features.arrow_schema
    label = next((column for column in ([label_column] if label_column else _LABEL_NAMES) if column in features), None)
    if label is None:
        what = f"label_column {label_column!r}" if label_column else f"a label column ({', '.join(_LABEL_NAMES)})"
        raise DataError(f"data {name!r}: {what} is not among its columns {', '.join(features)}")
    others = [column for column in features if column != label]
    images = [column for column in others if is_image(features[column])]
    nested = [c for c in _INPUT_NAMES if c in others and not isinstance(features[c], datasets.Value)]
    if input_column:
        found = [column for column in others if column == input_column]
    elif len(images) == 1 or nested:
        found = images if len(images) == 1 else nested[:1]
    else:
        numeric = [column for column in others if is_number(schema.field(column).type)]
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
    raw = {split: arrow(table, column).to_pylist() for split, table in tables.items()}
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
