"""Triton's interpreter cuts a float32 off where it becomes a bfloat16; a GPU rounds it to the nearest."""

from typing import Any

import numpy as np
import pytest
import torch


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round as a GPU does, ties to even."""
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    cut_off = interpreter._convert_float

    def convert(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) != (float32, bfloat16):
            return cut_off(values, source, target, mode)
        rounded = torch.tensor(values, dtype=torch.float32, device="cpu").to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
