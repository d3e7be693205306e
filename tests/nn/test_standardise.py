"""Running statistics of what trees see: what they are, that a batch counts once, that merging keeps the function."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastff.nn import TreeFeedForward, grow, quantize, start_growth
from fastff.nn.standardise import MOMENTUM, Standardise

CHEAP = {"rank": 5, "contributing": False, "leaf_bias": False, "master_width": 3}
FORMS = {"full": {}, "cheap": CHEAP, "gated": {"gated": True, "contributing": False}, "own": {"shared_base": False}}


def batches(count: int, tokens: int = 40, spread: float = 0.1) -> list[torch.Tensor]:
    """Tokens that are nearly alike."""
    torch.manual_seed(0)
    return [spread * torch.randn(tokens, 8) + torch.linspace(-3, 3, 8) for _ in range(count)]


def trained(spread: float = 0.1, **options: object) -> TreeFeedForward:
    layer = TreeFeedForward(8, depth=3, leaf_width=2, trees=2, standardise=True, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.2 * torch.randn_like(p))
    for x in batches(7, spread=spread):
        layer(x)
    return layer


def test_the_first_batches_count_alike() -> None:
    layer, given = Standardise(8), batches(4)
    for x in given:
        layer(x)
    every = torch.cat(given)
    torch.testing.assert_close(layer.mean, every.mean(0))
    torch.testing.assert_close(layer.variance, every.var(0, correction=0))
    y = layer.eval()(every)
    assert y.mean(0).abs().max() < 1e-3
    assert (y.std(0) - 1).abs().max() < 0.02


def test_one_deviation_for_all_features() -> None:
    layer = Standardise(3, alike=True)
    x = torch.randn(50, 3) * torch.tensor([0.0, 1.0, 5.0]) + 2
    y = layer(x)
    torch.testing.assert_close(y, (x - x.mean(0)) / x.var(0, correction=0).mean().sqrt())
    assert TreeFeedForward(8, depth=2, leaf_width=1, standardise=True).standard.alike
    assert not TreeFeedForward(8, depth=2, leaf_width=1, standardise=True, rank=4).standard.alike


def test_later_batches_have_a_constant_share() -> None:
    layer, given = Standardise(8), batches(9)
    mean = torch.zeros(8)
    for number, x in enumerate(given, start=1):
        layer(x)
        mean += max(1 / number, MOMENTUM) * (x.mean(0) - mean)
    torch.testing.assert_close(layer.mean, mean)
    assert layer.batches == 9


def test_batches_of_one_token_have_a_variance() -> None:
    layer = Standardise(8)
    given = torch.cat(batches(1, tokens=5))
    for x in given:
        layer(x[None])
    torch.testing.assert_close(layer.variance, given.var(0, correction=0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_no_number_leaves_no_trace(value: float, before: int) -> None:
    layer = Standardise(8)
    for x in batches(before):
        layer(x)
    known = copy.deepcopy(layer.state_dict())
    broken = batches(2)[1]
    broken[3, 2] = value
    layer(broken)
    layer(broken[:0])
    layer.eval()(batches(2)[1])
    assert all(torch.equal(t, known[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_takes_a_batch_in_once(reentrant: bool) -> None:
    layer, x = trained(**CHEAP), batches(8)[7].requires_grad_()
    plain = copy.deepcopy(layer)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    found, x.grad = x.grad, None
    plain(x).square().sum().backward()
    assert torch.equal(found, x.grad)
    assert all(torch.equal(t, layer.state_dict()[name]) for name, t in plain.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_merging_keeps_the_function(form: str) -> None:
    layer, x = trained(**FORMS[form]).eval(), batches(9)[8]
    y = layer(x)
    assert (layer.routing.leaf_counts > 0).sum() > 8  # tokens that are nearly alike are told apart
    merged = copy.deepcopy(layer)
    merged.merge_base()
    assert merged.merged
    assert not layer.merged
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-4)
    assert not [name for name in merged.state_dict() if name.startswith(("base", "standard"))]


@pytest.mark.parametrize("form", FORMS)
def test_quantising_merges(form: str) -> None:
    layer, x = trained(spread=2.0, **FORMS[form]).eval(), batches(9, spread=2.0)[8]
    y = layer(x)
    assert (quantize(layer)(x) - y).abs().mean() < 0.1 * y.abs().mean()
    assert layer.merged


def test_growth_keeps_the_function() -> None:
    layer = start_growth(trained(**CHEAP))
    x = batches(1)[0]
    before = layer.eval()(x)
    grow(layer, 0.5)
    assert layer.levels == 2
    torch.testing.assert_close(layer(x), before)


def test_statistics_keep_float32_and_start_anew() -> None:
    model = nn.Sequential(trained(**CHEAP)).bfloat16()
    layer = model[0]
    assert {t.dtype for t in layer.standard.buffers() if t.is_floating_point()} == {torch.float32}
    assert layer(batches(1)[0].bfloat16()).dtype == torch.bfloat16
    layer.reset_parameters()
    assert layer.standard.batches == 0
    assert "standardise=True" in repr(layer)
    with pytest.raises((TypeError, ValueError), match="standardise must be one of"):
        TreeFeedForward(8, depth=2, leaf_width=1, standardise=2)
