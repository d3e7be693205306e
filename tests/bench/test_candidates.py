"""What is timed: random weights, opponents that compute what their definition does, the check itself."""

import pytest
import torch

from fastff.bench import Settings
from fastff.bench.check import DisagreementError, check_gradients, check_output
from fastff.bench.opponents import Compiled, GatherBmm, Int8, LinearPair
from fastff.bench.suites.blocks import SUITE as BLOCKS
from fastff.bench.suites.inference import SUITE as INFERENCE
from fastff.bench.suites.layers import dense, moe, tree, tree_shapes, ultra
from fastff.bench.suites.width import SUITE as WIDTH
from fastff.nn import FeedForward, UltraFFF

SETTINGS = Settings(in_features=16, out_features=12, depth=4, trees=2)


@pytest.mark.parametrize("make", [dense, moe, tree, ultra])
def test_no_weight_is_zero_and_the_base_is_merged(make):
    more = {dense: (9,), tree: (2, 3)}.get(make, ())
    candidate = make(SETTINGS, *more)
    module = candidate.build(training=False)
    assert all(p.count_nonzero() == p.numel() for p in module.parameters())
    assert not any(name.startswith("base") for name, _ in module.named_parameters())
    assert not module.training
    assert (module.training_width, module.inference_width) == (candidate.width, candidate.executed)
    assert candidate.build(training=True).training


def test_trees_of_the_executed_width():
    for depth in (0, 1, 4, 11):
        settings = Settings(depth=depth)
        assert {d + width for d, width in tree_shapes(settings)} == {depth + 1}
    assert tree_shapes(Settings(depth=11)) == [(11, 1), (8, 4), (4, 8)]


def test_gather_and_bmm_is_the_same_function(monkeypatch):
    monkeypatch.setattr("fastff.bench.opponents.CHUNK", 3)
    layer = UltraFFF(6, 5, depth=3, trees=2)
    x = torch.randn(10, 6)
    torch.testing.assert_close(GatherBmm(layer)(x), layer(x))


@pytest.mark.parametrize("gated", [False, True])
def test_linear_and_int8_are_near_the_dense_layer(gated):
    layer = FeedForward(32, 24, width=40, gated=gated).requires_grad_(False)
    x = torch.randn(10, 32)
    expected = layer(x)
    torch.testing.assert_close(LinearPair(layer)(x), expected)
    int8 = Int8(layer)
    error = (int8(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    assert not torch.equal(int8.definition(x), expected)  # the weights are those that int8 holds


def test_layers_are_compiled_for_more_token_counts_than_one_may_be():
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for tokens in (2, 3):
            layer = FeedForward(4, width=8)
            x = torch.randn(tokens, 4)
            torch.testing.assert_close(Compiled(layer)(x), layer(x))


def test_blocks_share_their_weights():
    settings = Settings(in_features=16, out_features=12, max_blocks=8)
    groups = BLOCKS.groups(settings)
    assert [c.label for c in groups[-1].candidates] == ["dense 256", "MoE 8 x 32, top 2", "FFF d3 l32"]
    dense_, moe_, fff = (c.build(training=False) for c in groups[-1].candidates)
    assert dense_.w1.data_ptr() == moe_.expert_w1.data_ptr() == fff.leaf_w1.data_ptr()
    assert dense_.w2.data_ptr() == moe_.expert_w2.data_ptr() == fff.leaf_w2.data_ptr()
    assert moe_.gate_weight.count_nonzero() == moe_.gate_weight.numel()


def test_widths_are_powers_of_two():
    groups = WIDTH.groups(Settings(max_width=300))
    assert [g.candidates[0].width for g in groups] == [64, 128, 256]
    for group in groups:
        for candidate in group.candidates:
            assert abs(candidate.width / group.candidates[0].width - 1) < 0.13


def test_inference_compares_all_that_could_stand_in_its_place():
    labels = [c.label for c in INFERENCE.groups(Settings())[0].candidates]
    for label in (
        *(
            "dense 4095",
            "dense 4095 bf16",
            "dense 4095 int8",
            "dense 12 (bound)",
            "UltraFFF 1x11",
            "UltraFFF 1x11 bf16",
        ),
        *("Tree d8 l4", "Tree d11 l1", "Tree d4 l8", "MoE 128 x 32, top 2"),
        *("UltraFFF 1x11, gather + bmm", "UltraFFF 1x11, reference"),
    ):
        assert label in labels


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.3])
def test_the_check_finds_one_wrong_row(wrong):
    candidate = ultra(SETTINGS)
    module = candidate.build(training=False)
    x = torch.randn(50, 16)
    with torch.inference_mode():
        y = module(x)
        check_output(candidate, module, [x], [y])
        y[31, 3] += wrong
        with pytest.raises(DisagreementError, match="UltraFFF 2x4: output differs"):
            check_output(candidate, module, [x], [y])
        with pytest.raises(DisagreementError, match="shape"):
            check_output(candidate, module, [x], [y[:, 1:]])


def test_the_check_forgives_a_decision_within_rounding_alone():
    candidate = ultra(SETTINGS)
    module = candidate.build(training=False)
    with torch.no_grad():
        module.b_in.zero_()
        x = torch.randn(50, 16)
        w = module.w_in[0, 0]
        x[7] -= (x[7] @ w) / (w @ w) * w  # on the root's border
        y = module(x)
        y[7] = -y[7]
        check_output(candidate, module, [x], [y])
        y[8] = -y[8]
        with pytest.raises(DisagreementError):
            check_output(candidate, module, [x], [y])


def test_rows_within_rounding_of_a_decision_are_left_out_of_the_gradients(monkeypatch):
    candidate = tree(SETTINGS, 2, 3, "exact")
    batches = [(torch.randn(5, 16), torch.randn(5, 12))]
    monkeypatch.setattr("fastff.bench.check._clear", lambda layer, x, dtype: torch.arange(len(x)) > 0)
    check_gradients(candidate, candidate.build(training=True), batches)
