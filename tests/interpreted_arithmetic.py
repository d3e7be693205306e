"""Where Triton's interpreter computes otherwise than a GPU: rounding, and the order of a product's sums."""

from typing import Any

import numpy as np
import pytest
import torch


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round a float32 that becomes a bfloat16 as a GPU does, ties to even; it cuts it off."""
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    cut_off = interpreter._convert_float

    def convert(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) != (float32, bfloat16):
            return cut_off(values, source, target, mode)
        rounded = torch.tensor(values, dtype=torch.float32, device="cpu").to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


def sum_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products be summed in double precision, so that the order of the sums does not show.

    In a GPU's tile every element has one order. The interpreter leaves products to NumPy's BLAS, where, on some
    processors, it depends on the place of a row.
    """
    from triton.runtime import interpreter

    def create_dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        product = a.data.astype(np.float64) @ b.data.astype(np.float64)
        return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
