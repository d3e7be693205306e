"""The kernels of every instruction set that this processor has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastff.ops import instruction_set

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

SETS = ("baseline", "avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16", "avx512amx")  # from the least on
PRINT = "from fastff.ops import instruction_set; print(instruction_set())"


def run(cap: str, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FASTFF_INSTRUCTION_SET": cap, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=500)


def check(cap: str, *options: str) -> None:
    runs = run(cap, "-c", PRINT).stdout.strip()
    if runs != cap and cap != SETS[0]:  # not every processor with a greater set has all smaller ones
        pytest.skip(f"this processor lacks {cap}; {runs} runs in its place")
    names = ("test_kernels.py", "test_kernels_bits.py", "test_tree_int8.py", "test_product_keys.py")
    files = [str(Path(__file__).with_name(name)) for name in names]
    result = run(cap, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *options, *files)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("cap", SETS[:3])
def test_outputs_and_gradients_equal_the_reference(cap):
    """In every dtype, of odd sizes; the best set is the one that all other tests run."""
    check(cap, "-k", "(compact and 63) or tree_int8 or product_keys")


@pytest.mark.slow
@pytest.mark.parametrize("cap", SETS)
def test_all_that_holds_of_the_best_set_holds_of_each(cap):
    check(cap, "-k", "not on_gpu_kernels")


@pytest.mark.slow
def test_a_name_that_does_not_exist_gives_the_least():
    assert run("no such set", "-c", PRINT).stdout.strip() == SETS[0]
