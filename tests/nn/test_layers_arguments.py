"""What the layers refuse, and the numbers they state about themselves."""

import re

import pytest
import torch

from fastff.nn import FFF, PEER, FeedForward, MoE, TreeFeedForward, UltraFFF

GOOD = {
    FeedForward: {"width": 4},
    FFF: {"depth": 2, "leaf_width": 2},
    UltraFFF: {"depth": 2},
    TreeFeedForward: {"depth": 2, "leaf_width": 2},
    MoE: {"experts": 3, "expert_width": 2},
    PEER: {"experts": 9, "top_k": 2},
}
BAD_OF_ALL = [
    ("in_features", 0, ValueError),
    ("in_features", 2.0, TypeError),
    ("in_features", True, TypeError),
    ("out_features", 0, ValueError),
    ("out_features", "3", TypeError),
    ("activation", "swish", ValueError),
]
BAD = [
    (FeedForward, "width", 0, ValueError),
    (FeedForward, "width", None, TypeError),
    (FeedForward, "dropout", 1.0, ValueError),
    (FeedForward, "dropout", "0.1", TypeError),
    (FFF, "depth", -1, ValueError),
    (FFF, "depth", 31, ValueError),
    (FFF, "depth", 1.5, TypeError),
    (FFF, "leaf_width", 0, ValueError),
    (FFF, "dropout", -0.1, ValueError),
    (FFF, "dropout", float("nan"), ValueError),
    (FFF, "region_leak", 1, ValueError),
    (FFF, "region_leak", True, TypeError),
    (FFF, "master_width", -1, ValueError),
    (FFF, "harden", "yes", ValueError),
    (UltraFFF, "depth", -1, ValueError),
    (UltraFFF, "depth", 31, ValueError),
    (UltraFFF, "trees", 0, ValueError),
    (UltraFFF, "trees", 2.0, TypeError),
    (TreeFeedForward, "depth", -1, ValueError),
    (TreeFeedForward, "depth", 31, ValueError),
    (TreeFeedForward, "leaf_width", 0, ValueError),
    (TreeFeedForward, "trees", 0, ValueError),
    (TreeFeedForward, "gradient", "straight", ValueError),
    (TreeFeedForward, "two_sided", "no", ValueError),
    (TreeFeedForward, "shared_base", None, ValueError),
    (MoE, "experts", 0, ValueError),
    (MoE, "expert_width", 0, ValueError),
    (MoE, "top_k", 0, ValueError),
    (MoE, "top_k", 4, ValueError),
    (MoE, "dropout", 2, ValueError),
    (MoE, "loss_free", True, ValueError),
    (PEER, "experts", 10, ValueError),
    (PEER, "top_k", 4, ValueError),
    (PEER, "heads", 0, ValueError),
    (PEER, "key_features", 3, ValueError),
    (PEER, "dropout", 1, ValueError),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"), [*BAD, *[(kind, *bad) for kind in GOOD for bad in BAD_OF_ALL]]
)
def test_a_bad_constructor_argument_is_named(kind, name, value, error):
    arguments = {"in_features": 6} | GOOD[kind] | {name: value}
    with pytest.raises(error, match=name):
        kind(**arguments)


def test_out_features_is_in_features_unless_given(quick_variant):
    assert FFF(6, depth=1, leaf_width=1).out_features == 6
    layer = quick_variant()
    assert (layer.in_features, layer.out_features) == (6, 5)
    assert "6, 5" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64])
def test_input_that_is_no_floating_point_tensor_raises(quick_variant, dtype):
    with pytest.raises(TypeError, match=f"floating-point tensor, got {dtype}"):
        quick_variant()(torch.ones(2, 6).to(dtype))


def test_input_that_is_no_tensor_raises(quick_variant):
    with pytest.raises(TypeError, match="floating-point tensor, got list"):
        quick_variant()([[1.0] * 6])


@pytest.mark.parametrize("shape", [(2, 7), (6, 2), (0, 5), ()])
def test_a_wrong_last_dimension_raises_with_both_sizes(quick_variant, shape):
    with pytest.raises(ValueError, match=re.escape(f"6 features in its last dimension, got shape {shape}")):
        quick_variant()(torch.ones(shape))


def test_another_dtype_than_the_parameters_raises(quick_variant):
    with pytest.raises(TypeError, match=r"dtype of the parameters, torch\.float32.*got torch\.float64"):
        quick_variant()(torch.ones(2, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"dtype of the parameters, torch\.bfloat16.*got torch\.float32"):
        quick_variant(torch.bfloat16)(torch.ones(2, 6))


def test_autocast_with_a_float64_input_and_float32_parameters_raises(quick_variant):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="dtype of the parameters"):
        quick_variant()(torch.ones(2, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("layer", "training_width", "inference_width", "training_cost", "inference_cost"),
    [
        (FeedForward(6, 5, width=7), 7, 7, 7 * 11, 7 * 11),
        (FFF(6, 5, depth=4, leaf_width=8), 128, 12, 15 * 6 + 128 * 11, 4 * 6 + 8 * 11),
        (FFF(6, 5, depth=4, leaf_width=8, harden=True), 128, 12, 10 * 6 + 5 * 8 * 11, 4 * 6 + 8 * 11),
        (FFF(6, 5, depth=2, leaf_width=1, master_width=3), 7, 6, 3 * 6 + 7 * 11, 2 * 6 + 4 * 11),
        (FFF(6, 5, depth=0, leaf_width=3), 3, 3, 3 * 11, 3 * 11),
        (UltraFFF(6, 5, depth=11), 4095, 12, 12 * 11, 12 * 11),
        (UltraFFF(6, 5, depth=0, trees=30), 30, 30, 30 * 11, 30 * 11),
        # exact: 4 path nodes and one leaf; below the siblings of the four levels 3 + 2 + 1 + 0 nodes and 4 leaves
        (TreeFeedForward(6, 5, depth=4, leaf_width=8), 143, 12, (4 + 8 + 6 + 32) * 11, 12 * 11),
        (TreeFeedForward(6, 5, depth=4, leaf_width=8, gradient="sampled"), 143, 12, 23 * 11, 12 * 11),
        (TreeFeedForward(6, 5, depth=4, leaf_width=8, gradient="chosen"), 143, 12, 12 * 11, 12 * 11),
        (TreeFeedForward(6, 5, depth=4, leaf_width=8, gradient="none", trees=3), 429, 36, 36 * 11, 36 * 11),
        (TreeFeedForward(6, 5, depth=0, leaf_width=3), 3, 3, 33, 33),
        (MoE(6, 5, experts=8, expert_width=4), 32, 16, 2 * 8 * 6 + 8 * 11, 8 * 6 + 8 * 11),
        (PEER(6, 5, experts=16, heads=3, top_k=2, key_features=4), 16, 18, 12 * 10 + 6 * 11, 12 * 10 + 6 * 11),
        (MoE(6, 5, experts=3, expert_width=4, top_k=1), 12, 7, 2 * 3 * 6 + 4 * 11, 3 * 6 + 4 * 11),
    ],
    ids=repr,
)
def test_widths_and_multiply_adds(layer, training_width, inference_width, training_cost, inference_cost):
    assert (layer.training_width, layer.inference_width) == (training_width, inference_width)
    assert layer.multiply_adds(training=True) == training_cost
    assert layer.multiply_adds(training=False) == inference_cost
