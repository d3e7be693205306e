"""The kernels against the formulas in double, without PyTorch: also for a processor that is only emulated here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
VNNI = [*AVX512, "-mavx512vnni"]
X86 = {
    "baseline": [],
    "avx2": AVX2,
    "avx2vnni": [*AVX2, "-mavxvnni"],
    "avx512": AVX512,
    "avx512vnni": VNNI,
    "avx512bf16": [*VNNI, "-mavx512bf16"],
    "avx512amx": [*VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8"],
}
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

PROCESSOR = Path("/proc/cpuinfo")

pytestmark = pytest.mark.slow


def run(compiler: str, name: str, flags: list[str], folder: Path, before: list[str]) -> str:
    if shutil.which(compiler) is None or not all(shutil.which(tool) for tool in before):
        pytest.skip(f"needs {' and '.join([compiler, *before])}")
    program = folder / "check"
    options = ["-std=c++20", "-O1", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-w", *flags]
    sources = ["-I", str(ROOT / "src/fastff/csrc/kernels"), str(ROOT / "tests/csrc/check_kernels.cpp")]
    subprocess.run([compiler, *options, f"-DFASTFF_ISA={name}", *sources, "-o", str(program)], check=True)
    done = subprocess.run([*before, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_threads_do_not_race(tmp_path):
    """Under the thread sanitizer, with more threads than there are cores."""
    flags = ["-g", "-fsanitize=thread", "-DTHREADS=4", "-pthread"]
    assert "0 failures" in run("g++", "baseline", flags, tmp_path, [])


@pytest.mark.skipif(not PROCESSOR.exists(), reason="asks Linux what the processor has")
@pytest.mark.parametrize("name", X86)
def test_on_this_processor_under_the_sanitizers(name, tmp_path):
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip()
    if machine != "x86_64":
        pytest.skip("another processor")
    has = re.search(r"^flags\s*:(.*)$", PROCESSOR.read_text(), re.MULTILINE)[1].replace("_", "").split()
    if not {flag.removeprefix("-m").replace("-", "") for flag in X86[name]} <= set(
        has
    ):  # otherwise no instruction may be unknown to it
        pytest.skip(f"this processor has no {name}")
    assert "0 failures" in run("g++", name, [*X86[name], *SANITIZE], tmp_path, [])


def test_on_an_emulated_arm_processor(tmp_path):
    assert "0 failures" in run("aarch64-linux-gnu-g++", "baseline", ["-static"], tmp_path, ["qemu-aarch64"])
