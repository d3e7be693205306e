"""Columns of a table -> the inputs of its samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastff.runs.open_data import DataError


def is_image(feature: Any) -> bool:
    """An image column, or one that would be but for its type's name: {"bytes": ..., "path": ...}."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def is_number(kind: Any) -> bool:
    """Whether an Arrow type is one of numbers, truth values included."""
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def read_images(table: Any, column: str, like: Tensor | None, where: str) -> Tensor:
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


def read_vectors(table: Any, columns: list[str], where: str) -> Tensor:
    """(n, features) float32: the columns side by side, nested lists flattened."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    parts = []
    for column in columns:
        array, width = arrow(table, column), 1
        while not is_number(array.type):
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


def arrow(table: Any, column: str) -> Any:
    """A column of a table as one Arrow array."""
    return table.select_columns(column).with_format("arrow")[:][column].combine_chunks()
