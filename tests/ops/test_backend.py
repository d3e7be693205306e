import pytest
import torch

from fastff.ops import backend_for, use_backend


def test_the_device_chooses_and_the_override_wins_inside_its_block():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (backend_for(cpu), backend_for(cuda)) == ("cpu", "reference")
    with use_backend("reference"):
        assert backend_for(cpu) == "reference"
        with use_backend("cpu"):
            assert backend_for(cpu) == "cpu"
        assert backend_for(cpu) == "reference"
    assert backend_for(cpu) == "cpu"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'cuda'"), use_backend("cuda"):
        pass
