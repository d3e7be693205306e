"""What `import fastff` brings at once, and what it brings when it is asked for."""

import subprocess
import sys

import pytest

import fastff


def test_slow_submodules_are_imported_on_demand():
    code = (
        "import sys, fastff; assert 'fastff.optim' not in sys.modules; fastff.optim.BlockwiseAdam, fastff.train.train"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastff' has no attribute 'optimizers'"):
        fastff.optimizers  # noqa: B018
