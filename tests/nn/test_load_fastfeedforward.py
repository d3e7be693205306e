"""Checkpoints of the authors' package: good ones, damaged ones, hostile ones."""

import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fastff.nn import load_fastfeedforward

DEPTH, IN, WIDTH, OUT, MASTER = 2, 6, 3, 5, 4
REFERENCE = Path(__file__).parents[3] / "shared/data/reference/fastfeedforward_d4_l6"


def checkpoint(depth: int = DEPTH, master: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    N, L = 2**depth - 1, 2**depth
    shapes = {
        "node_weights": (N, IN),
        "node_biases": (N, 1),
        "w1s": (L, IN, WIDTH),
        "b1s": (L, WIDTH),
        "w2s": (L, WIDTH, OUT),
        "b2s": (L, OUT),
    }
    if master:
        shapes |= {"magic_w1": (1, IN, MASTER), "magic_b1": (1, MASTER), "magic_w2": (1, MASTER, OUT)}
        shapes |= {"magic_b2": (1, OUT), "k": ()}
    state = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    return state | {"depth": torch.tensor(depth), "node_usage": torch.zeros(N), "leaf_usage": torch.zeros(L)}


def save(state: object, folder: Path, kind: str) -> Path:
    path = folder / f"model.{kind}"
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    return path


def hard_by_hand(s: dict[str, Tensor], x: Tensor, depth: int = DEPTH) -> Tensor:
    rows = []
    for x_I in x:
        n = 0
        for _ in range(depth):
            n = 2 * n + 1 + int(s["node_weights"][n] @ x_I + s["node_biases"][n, 0] >= 0)
        leaf = n - (2**depth - 1)
        rows.append(F.relu(x_I @ s["w1s"][leaf] + s["b1s"][leaf]) @ s["w2s"][leaf] + s["b2s"][leaf])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("depth", [0, 1, DEPTH])
def test_a_saved_state_dict_computes_what_its_tensors_say(tmp_path, kind, depth):
    state = checkpoint(depth)
    layer = load_fastfeedforward(save(state, tmp_path, kind))
    assert (layer.depth, layer.leaf_width, layer.in_features, layer.out_features) == (depth, WIDTH, IN, OUT)
    x = torch.randn(50, IN)
    torch.testing.assert_close(layer.eval()(x), hard_by_hand(state, x, depth), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_master_leaf_is_weighed_by_one_minus_sigmoid_k(tmp_path, kind):
    state = checkpoint(master=True) | {"f": torch.zeros(4)}
    layer = load_fastfeedforward(str(save(state, tmp_path, kind))).eval()
    assert layer.master_width == MASTER
    x = torch.randn(50, IN)
    hidden = F.relu(x @ state["magic_w1"][0] + state["magic_b1"])
    master = hidden @ state["magic_w2"][0] + state["magic_b2"]
    k = 1 / (1 + math.exp(-state["k"].item()))
    torch.testing.assert_close(layer(x), k * hard_by_hand(state, x) + (1 - k) * master, rtol=1e-5, atol=1e-5)


def test_dtype_and_activation_are_kept_and_the_depth_may_be_missing(tmp_path):
    state = checkpoint(dtype=torch.float64)
    del state["depth"]
    layer = load_fastfeedforward(save(state, tmp_path, "pt"), activation="gelu")
    assert layer.activation == "gelu"
    assert layer.depth == DEPTH
    assert all(p.dtype == torch.float64 for p in layer.parameters())


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["torch", "torch-legacy", "pickle"])
def test_a_hostile_pickle_raises_and_runs_nothing(tmp_path, writer):
    target, path = tmp_path / "made", tmp_path / "model.pt"
    state = checkpoint() | {"extra": Hostile(target)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_fastfeedforward(path)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["pt", "safetensors", "legacy"])
def test_a_truncated_file_raises_wherever_it_ends(tmp_path, kind):
    path = tmp_path / f"model.{'pt' if kind == 'legacy' else kind}"
    if kind == "legacy":
        torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    else:
        save(checkpoint(), tmp_path, kind)
    whole = path.read_bytes()
    for length in {*range(40), *range(40, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\."):
            load_fastfeedforward(path)


@pytest.mark.parametrize("name", ["node_weights", "node_biases", "w1s", "b1s", "w2s", "b2s"])
def test_a_missing_tensor_is_named(tmp_path, name):
    state = checkpoint()
    del state[name]
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_fastfeedforward(save(state, tmp_path, "pt"))


@pytest.mark.parametrize("name", ["magic_w1", "magic_b1", "magic_w2", "magic_b2", "k"])
def test_a_missing_tensor_of_the_master_leaf_is_named(tmp_path, name):
    state = checkpoint(master=True)
    del state[name]
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_fastfeedforward(save(state, tmp_path, "pt"))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("node_weights", torch.zeros(4, IN)),
        ("node_weights", torch.zeros(3, IN + 1)),
        ("node_biases", torch.zeros(2, 1)),
        ("node_biases", torch.tensor(0.0)),
        ("w1s", torch.zeros(4, IN)),
        ("w1s", torch.zeros(3, IN, WIDTH)),
        ("w1s", torch.zeros(0, IN, WIDTH)),
        ("w1s", torch.zeros(4, 0, WIDTH)),
        ("w1s", torch.zeros(4, IN, WIDTH, dtype=torch.int64)),
        ("b1s", torch.zeros(4, WIDTH + 1)),
        ("w2s", torch.zeros(4, WIDTH)),
        ("w2s", torch.zeros(4, WIDTH + 1, OUT)),
        ("b2s", torch.zeros(1, OUT)),
        ("depth", torch.tensor(3)),
        ("depth", torch.tensor([2, 2])),
        ("magic_w1", torch.zeros(())),
        ("magic_w1", torch.zeros(2, IN, MASTER)),
        ("magic_b1", torch.zeros(1, MASTER + 1)),
        ("magic_w2", torch.zeros(MASTER)),
        ("k", torch.zeros(2)),
    ],
    ids=lambda v: v if isinstance(v, str) else f"{list(v.shape)}-{v.dtype}",
)
def test_wrong_shapes_and_dtypes_raise_value_error(tmp_path, name, wrong):
    path = save(checkpoint(master=True) | {name: wrong}, tmp_path, "pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_fastfeedforward(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), {"w1s": 3}, "text"], ids=repr)
def test_a_file_of_something_else_raises(tmp_path, content):
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_fastfeedforward(save(content, tmp_path, "pt"))


def test_no_file_and_a_folder_raise_file_not_found(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="path"):
            load_fastfeedforward(path)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="shared/data/reference/fastfeedforward_d4_l6 is not there")
def test_outputs_equal_those_of_the_authors_package():
    expected = load_file(REFERENCE / "expected.safetensors")
    layer = load_fastfeedforward(REFERENCE / "model.safetensors")
    x = expected["input"]
    torch.testing.assert_close(layer.train()(x), expected["soft_output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.routing.node_entropy[0], expected["node_entropies"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x), expected["hard_output"], rtol=1e-4, atol=1e-5)
