"""What every layer does alike: shapes, dtypes, autocast, copies, gradients."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from fastff.nn import PEER, FeedForward, TreeFeedForward, auxiliary_loss
from fastff.nn.peer import best_pairs

IN, OUT = 6, 5


def output_and_gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and the gradients of the input and of every parameter, of a fixed weighted sum."""
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y)
    inputs = [x, *layer.parameters()]  # in eval() nothing depends on the noise of an MoE
    return y, list(torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True, materialize_grads=True))


def assert_same(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    for a, e in zip([actual[0], *actual[1]], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)], ids=str)
def test_any_leading_shape_gives_what_its_rows_give(variant, shape):
    layer = variant(torch.float64).eval()
    x = torch.randn(*shape, IN, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*shape, OUT)
    rows = [layer(row) for row in x.reshape(-1, IN)]
    expected = torch.stack(rows).view(y.shape) if rows else torch.empty_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_zero_gradients_and_finite_losses(variant, training):
    layer = variant().train(training)
    y, gradients = output_and_gradients(layer, torch.empty(0, IN))
    assert y.shape == (0, OUT)
    assert all(torch.count_nonzero(g) == 0 for g in gradients)
    loss = auxiliary_loss(layer, hardening=1, balance=1, importance=1, load=1)
    assert loss.item() == 0


def test_non_contiguous_input_gives_the_same(variant):
    layer = variant(torch.float64).eval()
    x = torch.randn(3, IN, 4, dtype=torch.float64).mT
    assert not x.is_contiguous()
    torch.manual_seed(1)  # of the sampled gradient
    actual = output_and_gradients(layer, x)
    torch.manual_seed(1)
    assert_same(actual, output_and_gradients(layer, x.contiguous()), 1e-12)
    expanded = x[0, :1].expand(5, IN)
    torch.testing.assert_close(layer(expanded), layer(expanded.contiguous()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006), (torch.float32, 1e-5)]
)
def test_low_precision_is_close_to_float64(variant, dtype, tolerance):
    layer = variant(dtype).eval()
    x = torch.randn(200, IN).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert y.isfinite().all()
    error = (y.double() - layer.double()(x.double())).abs().amax(1)
    assert error.median() < tolerance
    assert (error < tolerance).double().mean() > 0.9  # a token whose logit is all but 0 may go the other way
    layer.to(dtype).train()
    assert all(g.isfinite().all() and g.dtype == dtype for g in output_and_gradients(layer, x)[1])


def test_autocast_computes_in_bfloat16_and_keeps_gradients_in_float32(variant):
    layer, linear = variant(), nn.Linear(IN, OUT)
    x = torch.randn(8, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == linear(x).dtype == torch.bfloat16
        assert layer.eval()(x.bfloat16()).dtype == torch.bfloat16
        low = layer(x)
    expected = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert torch.equal(low, expected)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_autocast_leaves_float64_alone(variant):
    layer = variant(torch.float64).eval()
    x = torch.randn(4, IN, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x))
    assert y.dtype == torch.float64


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "save"])
def test_copies_after_a_forward_with_graph_compute_the_same(variant, copier):
    layer = variant()
    x = torch.randn(5, IN)
    layer(x)
    if copier == "deepcopy":
        twin = copy.deepcopy(layer)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin) is type(layer)
    assert not getattr(twin, "has_routing", False)
    assert all(p is not q for p, q in zip(twin.parameters(), layer.parameters(), strict=True))
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_state_dict_round_trip(variant):
    layer, other = variant(), variant()
    x = torch.randn(5, IN)
    layer(x)
    assert not torch.equal(layer.eval()(x), other.eval()(x))
    assert set(layer.state_dict()) == {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


def test_functional_call_uses_the_given_parameters(variant):
    layer, other = variant().eval(), variant().eval()
    x = torch.randn(5, IN)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    y = torch.func.functional_call(layer, parameters, (x,))
    assert torch.equal(y, other(x))
    y.sum().backward()
    assert all(p.grad is None for p in layer.parameters())
    assert any(p.grad is not None and p.grad.any() for p in parameters.values())


@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(calm_variant, training):
    layer = calm_variant(torch.float64).train(training)
    x = torch.randn(7, IN, dtype=torch.float64)
    wrapped = nn.Module()
    wrapped.layer = layer
    wrapped.forward = lambda x: checkpoint(layer, x, use_reentrant=False)
    assert_same(output_and_gradients(wrapped, x), output_and_gradients(layer, x), 1e-12)


def test_gradient_checkpointing_repeats_random_draws(variant):
    layer = variant(torch.float64)
    x = torch.randn(7, IN, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (lambda: checkpoint(layer, x, use_reentrant=False), lambda: layer(x)):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(run().square().sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def away_from_edges(layer: nn.Module, tokens: int) -> Tensor:
    """Tokens whose decisions stay the same when an input or a parameter moves by a thousandth."""
    x = torch.randn(4000, IN, dtype=torch.float64)
    layer(x)
    record = getattr(layer, "_record", None)
    keep = torch.ones(len(x), dtype=torch.bool)
    if hasattr(layer, "depth") and record[0].numel():
        keep = record[0].flatten(1).abs().amin(1) > 0.02
    elif isinstance(layer, PEER):
        best = best_pairs(layer.seen(x), layer.query_weight, layer.key_weight, layer.top_k + 1)[0]
        keep = best.diff(dim=-1).abs().flatten(1).amin(-1) > 0.005
    elif hasattr(layer, "experts"):
        logits = x @ layer.gate_weight.T
        keep = logits.sort(-1).values.diff(dim=-1).amin(-1) > 0.005
    return x[keep][:tokens]


def test_gradients_equal_finite_differences_in_eval(variant):
    layer = variant(torch.float64).eval()
    x = away_from_edges(layer, 3)
    assert len(x) == 3
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *parameters), eps=1e-6, atol=1e-6)


def test_permuting_a_batch_permutes_the_outputs(variant):
    layer = variant(torch.float64).eval()
    x, order = torch.randn(50, IN, dtype=torch.float64), torch.randperm(50)
    torch.testing.assert_close(layer(x[order]), layer(x)[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 100])
def test_every_parameter_gets_a_finite_gradient_in_training(variant, tokens):
    layer = variant()
    loss = layer(torch.randn(tokens, IN)).square().sum()
    loss = loss + auxiliary_loss(layer, hardening=0.1, balance=0.1, importance=0.1, load=0.1)
    loss.backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        if tokens == 100 and math.prod(p.shape):
            assert p.grad.abs().sum() > 0, name


def test_parametrised_and_pruned_layers_run():
    layer = TreeFeedForward(6, depth=2, leaf_width=2)
    before = layer(torch.ones(2, 6))
    parametrizations.weight_norm(layer, "node_weight", dim=None)
    torch.testing.assert_close(layer(torch.ones(2, 6)), before)
    prune.l1_unstructured(layer, "base_w1", 0.5)
    assert not torch.equal(layer(torch.ones(2, 6)), before)


def test_autocast_does_not_touch_float64():
    layer = FeedForward(6, width=2)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="float64"):
        layer(torch.ones(2, 6, dtype=torch.float64))
