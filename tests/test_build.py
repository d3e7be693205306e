"""The compiled extension as a file: what it exports, what it needs, what its kernels leave to the linker's choice."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "build"

pytestmark = pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")


@pytest.fixture(scope="module")
def extension() -> str:
    """The extension's path. FASTFF_BUILD=1 says that it must be there."""
    spec = importlib.util.find_spec("fastff._C")
    if spec is None and os.environ.get("FASTFF_BUILD") != "1":
        pytest.skip("the extension is not built")
    assert spec is not None
    return spec.origin


def readelf(*arguments: str | Path) -> str:
    run = subprocess.run(["readelf", "--wide", *arguments], check=True, capture_output=True, text=True)
    return run.stdout


def defined(option: str, path: str | Path) -> list[tuple[str, str, str]]:
    """Type, binding and name of each symbol that the file defines for others."""
    rows = [line.split() for line in readelf(option, path).splitlines()]
    symbols = [r[3:8] for r in rows if len(r) >= 8 and r[0][:-1].isdigit() and r[6] != "UND"]
    return [(kind, binding, name) for kind, binding, _, _, name in symbols if binding != "LOCAL"]


def test_it_loads(extension: str) -> None:
    importlib.import_module("fastff._C")


def test_exports_only_its_initialisation(extension: str) -> None:
    assert [name for _, _, name in defined("--dyn-syms", extension)] == ["PyInit__C"]


def test_needs_only_torch_and_the_system(extension: str) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", extension))
    allowed = r"lib(torch\w*|c10\w*|c|m|stdc\+\+|gcc_s|pthread)\.so[.\d]*|ld-linux.*"
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []


def test_holds_no_path_of_this_machine(extension: str) -> None:
    assert re.findall(r"\((?:RPATH|RUNPATH)\).*", readelf("--dynamic", extension)) == []


@pytest.mark.skipif(not list(BUILD.glob("*/CMakeCache.txt")), reason="build/ holds no build of the extension")
def test_kernels_of_one_instruction_set_stand_in_for_no_other(extension: str) -> None:
    """Of a weak function the linker keeps any one copy, perhaps the one for AVX-512, unless its name has the set."""
    shared = set()
    objects = sorted(BUILD.glob("*/CMakeFiles/kernels_*/**/*.o"))
    assert objects
    for path in objects:
        isa = re.search(r"kernels_(\w+)\.dir", str(path))[1]
        if isa != "baseline":
            weak = {name for kind, binding, name in defined("--syms", path) if (kind, binding) == ("FUNC", "WEAK")}
            shared |= {name for name in weak if f"{len(isa)}{isa}" not in name}
    assert shared == set()
