"""What `import fastff` brings at once, and what it brings when it is asked for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastff

ROOT = Path(__file__).parents[1]


def test_slow_submodules_are_imported_on_demand():
    code = (
        "import sys, fastff; assert 'fastff.optim' not in sys.modules; fastff.optim.BlockwiseAdam, fastff.train.train"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastff' has no attribute 'optimizers'"):
        fastff.optimizers  # noqa: B018


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="there is no git, or this is no checkout"
)
def test_nothing_of_the_package_is_left_out_of_wheels():
    """What .gitignore names, scikit-build-core leaves out."""
    files = [str(path) for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".pyi", ".h", ".cpp", ".typed")]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    run = subprocess.run(command, cwd=ROOT, input="\n".join(files), capture_output=True, text=True, check=False)
    assert run.stdout == ""
    assert run.returncode == 1  # none is ignored
