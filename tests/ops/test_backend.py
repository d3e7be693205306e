"""Which code runs an operator, and what is said where the compiled one is missing."""

import subprocess
import sys
import warnings

import pytest
import torch

from fastff.ops import backend, backend_of, tree_feedforward, use_backend

WITHOUT = """
import sys, warnings
sys.modules["fastff._C"] = None  # as where no compiler was
import torch
import fastff
from fastff import doctor
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    layer = fastff.UltraFFF(8, depth=3)
    y = layer(torch.randn(5, 8))
    y.sum().backward()
    layer(torch.randn(5, 8))
messages = [str(w.message) for w in caught if "compiled CPU kernels" in str(w.message)]
assert len(messages) == 1, messages
report = dict(doctor.report())
assert report["CPU operators"].startswith("missing, the reference runs"), report
try:
    with fastff.ops.use_backend("cpu"):
        pass
except RuntimeError as error:
    assert "missing" in str(error)
else:
    raise AssertionError("use_backend took what is not there")
"""


def test_without_the_extension_the_reference_runs_and_says_so_once():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


@pytest.mark.skipif(backend.extension is None, reason="this installation lacks the compiled kernels")
def test_the_backend_follows_device_and_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backend_of(torch.empty(1, dtype=dtype)) == "cpu"
    assert backend_of(torch.empty(1, dtype=torch.float64)) == "reference"
    assert backend_of(torch.empty(1, device="meta")) == "reference"
    with use_backend("reference"):
        assert backend_of(torch.empty(1)) == "reference"
        with use_backend("cpu"):
            assert backend_of(torch.empty(1)) == "cpu"
            assert backend_of(torch.empty(1, dtype=torch.float64)) == "reference"
        assert backend_of(torch.empty(1)) == "reference"
    assert backend_of(torch.empty(1)) == "cpu"


def test_an_unknown_backend_raises():
    with pytest.raises(ValueError, match="name must be one of reference, cpu, triton, got 'gpu'"), use_backend("gpu"):
        pass


@pytest.mark.skipif(backend.extension is None, reason="this installation lacks the compiled kernels")
def test_nothing_is_said_where_the_extension_is_there():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, _ = tree_feedforward(torch.randn(3, 4), torch.randn(1, 3, 4), torch.randn(1, 3), torch.randn(1, 3, 5))
    assert y.shape == (3, 5)
