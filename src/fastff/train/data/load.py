"""A data set by name: its splits, its statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.runs.open_data import DataError
from fastff.train.data.splits import Data, Split
from fastff.train.data.tables import SPLITS, read_tables


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
    splits, class_names = _digits() if name == "digits" else read_tables(name, input_column, label_column)
    train, kept, test = _divide(name, splits, validation, limit, seed)
    mean, std = _statistics(train.inputs)
    return Data(name, train, kept, test, len(class_names), class_names, mean, std)


def _divide(
    name: str, splits: dict[str, Split], validation: int | float | None, limit: int | None, seed: int
) -> tuple[Split, Split, Split]:
    train, kept, test = (splits.get(split) for split in SPLITS)
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
