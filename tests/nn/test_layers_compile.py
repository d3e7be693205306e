"""Every layer under torch.compile and torch.export, as one graph."""

import pytest
import torch
from torch import nn

from fastff.nn import FFF, MoE, TreeFeedForward, UltraFFF, auxiliary_loss

IN, OUT = 6, 5


def forward_and_gradients(run: nn.Module, layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = run(x)
    loss = y.square().sum() + auxiliary_loss(layer, hardening=0.1, balance=0.1, importance=0.1, load=0.1)
    inputs = [x, *layer.parameters()]
    return [y, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]


def assert_compiled_equals_eager(layer: nn.Module, backend: str, random: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for tokens in (7, 12):
        x = torch.randn(tokens, IN)
        actual, expected = forward_and_gradients(compiled, layer, x), forward_and_gradients(layer, layer, x)
        if random:
            assert [t.shape for t in actual] == [t.shape for t in expected]
            assert all(t.isfinite().all() for t in actual)
        else:
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph_with_equal_outputs_losses_and_gradients(quick_variant, training):
    layer = quick_variant().train(training)
    assert_compiled_equals_eager(layer, "aot_eager", quick_variant.random and training)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_every_variant_compiles_as_one_graph(variant, training):
    layer = variant().train(training)
    assert_compiled_equals_eager(layer, "aot_eager", variant.random)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_inductor_gives_equal_outputs_losses_and_gradients(quick_variant, training):
    layer = quick_variant().train(training)
    assert_compiled_equals_eager(layer, "inductor", quick_variant.random and training)


def test_exports_with_any_number_of_tokens(quick_variant):
    layer = quick_variant().eval()
    program = torch.export.export(layer, (torch.randn(4, IN),), dynamic_shapes=({0: torch.export.Dim("tokens")},))
    module = program.module()
    for tokens in (1, 4, 33):
        x = torch.randn(tokens, IN)
        torch.testing.assert_close(module(x), layer(x), rtol=1e-5, atol=1e-6)
    assert not getattr(layer, "has_routing", False) or layer.routing.leaf.shape[0] == 33  # of the eager calls only


@pytest.mark.slow
def test_every_variant_exports(variant):
    layer = variant().eval()
    program = torch.export.export(layer, (torch.randn(2, 4, IN),), dynamic_shapes=({1: torch.export.Dim("tokens")},))
    for tokens in (1, 4, 33):
        x = torch.randn(2, tokens, IN)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda device: FFF(IN, depth=3, leaf_width=2, master_width=2, device=device),
        lambda device: UltraFFF(IN, depth=3, trees=2, device=device),
        lambda device: TreeFeedForward(IN, depth=3, leaf_width=2, device=device),
        lambda device: MoE(IN, experts=3, expert_width=2, device=device),
    ],
)
def test_a_layer_made_on_the_meta_device_can_be_filled_later(make):
    layer = make("meta")
    assert all(p.is_meta for p in layer.parameters())
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.randn(4, IN)).isfinite().all()


def test_a_forward_on_the_meta_device_gives_the_shape(quick_variant):
    y = quick_variant().to("meta")(torch.empty(2, 4, IN, device="meta"))
    assert y.is_meta
    assert y.shape == (2, 4, OUT)
