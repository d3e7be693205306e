"""`fastff.quantize`: layers and models in int8 or bfloat16: what they compute, how they are saved, what they refuse."""

import copy
import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import fastff
from fastff.ops import instruction_set

LAYERS = {
    "fff": lambda: fastff.FFF(40, 30, depth=3, leaf_width=2, activation="gelu"),
    "fff-master": lambda: fastff.FFF(40, 30, depth=2, leaf_width=2, master_width=3),
    "ultra": lambda: fastff.UltraFFF(40, 30, depth=4, trees=3),
    "tree": lambda: fastff.TreeFeedForward(40, 30, depth=3, leaf_width=2, trees=2),
    "tree-one-sided": lambda: fastff.TreeFeedForward(40, 30, depth=3, leaf_width=1, two_sided=False),
    "peer": lambda: fastff.PEER(40, 30, experts=25, heads=3, top_k=2, key_features=8),
    "peer-rank": lambda: fastff.PEER(40, 30, experts=36, heads=2, top_k=3, key_features=8, rank=16, master_width=6),
    "tree-rank": lambda: fastff.TreeFeedForward(
        40, 30, depth=3, leaf_width=1, trees=5, rank=16, contributing=False, leaf_bias=False, master_width=6
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    layer = LAYERS[request.param]().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return layer


@torch.no_grad()
def test_it_computes_nearly_the_same(layer):
    x = torch.randn(3, 100, 40)
    expected, before = layer(x), layer.routing.leaf
    assert fastff.quantize(layer) is layer
    y = layer(x)
    same = (layer.routing.leaf == before).all(-1)
    assert same.float().mean() > 0.7
    error = (y - expected).flatten(0, 1)[same].norm() / expected.flatten(0, 1)[same].norm()
    assert 0 < error < 0.03
    assert layer.routing.leaf_counts.sum() == 300 * before.shape[1]
    assert layer(x[:0]).shape == (0, 100, 30)
    torch.testing.assert_close(layer(x[1, 2]), y[1, 2])


@torch.no_grad()
def test_dtypes_are_those_of_the_input(layer):
    fastff.quantize(layer)
    x = torch.randn(50, 40)
    y = layer(x)
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.05), (torch.float64, 0.02)):
        assert layer(x.to(dtype)).dtype == dtype
        assert (layer(x.to(dtype)).float() - y).norm() / y.norm() < tolerance + 0.2  # paths near 0 turn
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.bfloat16()))
    scale = layer.in_scale.clone()
    assert torch.equal(layer.to(torch.bfloat16).in_scale, scale)
    assert torch.equal(layer.half()(x.half()), layer.float()(x.half()))
    assert layer.to("meta").to_empty(device="cpu").in_rows.shape == layer.in_rows.shape


@torch.no_grad()
def test_saved_and_loaded_by_state_dict_and_safetensors(layer):
    other, x = copy.deepcopy(layer), torch.randn(20, 40)
    float_state = copy.deepcopy(layer.state_dict())
    y = fastff.quantize(layer)(x)
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    assert stored.tell() < sum(t.numel() * 4 for t in float_state.values()) + 60_000
    with pytest.raises(RuntimeError, match=r"are in int8, those of the model in floating point.*quantize"):
        other.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="are in floating point, those of the model in int8"):
        layer.load_state_dict(float_state)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    fastff.quantize(other).load_state_dict(load(save(layer.state_dict())))
    assert torch.equal(other(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)


def test_it_does_not_train(layer):
    fastff.quantize(layer)
    with pytest.raises(RuntimeError, match="int8 does not train"):
        layer.train()(torch.randn(2, 40))
    y = layer.eval()(torch.randn(2, 40, requires_grad=True))
    with pytest.raises(RuntimeError, match="no gradients"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="int8 already"):
        layer.quantize()
    assert fastff.quantize(layer) is layer


def test_bad_input_is_named(layer):
    fastff.quantize(layer)
    with pytest.raises(ValueError, match="x must have 40 features"):
        layer(torch.randn(2, 41))
    with pytest.raises(TypeError, match="floating-point tensor, got torch.int64"):
        layer(torch.ones(2, 40, dtype=torch.int64))


@pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")
@torch.no_grad()
def test_compiled_and_exported(layer):
    fastff.quantize(layer)
    x = torch.randn(20, 40)
    y = layer(x)
    torch._dynamo.reset()  # which compiles one function for so many layers, and no more
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), y)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("tokens", min=2)},))
    torch.testing.assert_close(exported.module()(torch.cat([x, x])), torch.cat([y, y]))


def test_models():
    model = nn.Sequential(nn.Linear(40, 40), LAYERS["tree"](), fastff.FeedForward(30, width=8)).eval()
    weight = model[0].weight
    assert fastff.quantize(model) is model
    assert model[0].weight is weight
    assert model[1].int8 is not None
    assert not list(model[1].parameters())
    assert model(torch.randn(2, 40)).shape == (2, 30)
    for none in (nn.Linear(4, 4), fastff.FeedForward(4, width=4), fastff.MoE(4, experts=2, expert_width=2)):
        with pytest.raises(ValueError, match="model must have layers made of trees"):
            fastff.quantize(none)


def test_trees_that_grow_are_not_quantised():
    layer = fastff.start_growth(LAYERS["tree"]())
    with pytest.raises(ValueError, match="grown to its depth, 3, before it is quantised, has 0"):
        fastff.quantize(layer)


ALL = LAYERS | {
    "dense": lambda: fastff.FeedForward(40, 30, width=20),
    "moe": lambda: fastff.MoE(40, 30, experts=4, expert_width=5),
}


@pytest.mark.parametrize("kind", ALL)
def test_weights_in_bfloat16_under_inputs_of_any_dtype(kind):
    model = nn.Sequential(nn.Linear(40, 40), ALL[kind](), nn.LayerNorm(30)).eval()
    layer, x = model[1], torch.randn(7, 9, 40)
    assert fastff.quantize(model, torch.bfloat16) is model
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert model[0].weight.dtype == model(x).dtype == torch.float32
    in_bfloat16 = copy.deepcopy(layer)
    in_bfloat16.casts_input = False
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(layer(x.to(dtype)), in_bfloat16(x.to(dtype).bfloat16()).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), in_bfloat16(x))
    model(x).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    loaded = fastff.quantize(ALL[kind]().eval(), torch.bfloat16)
    loaded.load_state_dict(load(save(layer.state_dict())))
    assert torch.equal(loaded(x), layer(x))
    with pytest.raises(ValueError, match="features"):
        layer(x[..., 1:])


def test_other_dtypes_and_models_without_layers_are_refused():
    with pytest.raises(ValueError, match=r"dtype must be one of torch.int8, torch.bfloat16, got torch.float16"):
        fastff.quantize(fastff.FFF(4, depth=1, leaf_width=1), torch.float16)
    with pytest.raises(ValueError, match="model must have layers of this library, Linear has none"):
        fastff.quantize(nn.Linear(2, 2), torch.bfloat16)
