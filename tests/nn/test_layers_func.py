"""Layers under the transforms of torch.func: vmap is right, the others are refused."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from fastff.nn import FFF, FeedForwardLayer, MoE, TreeFeedForward, UltraFFF
from fastff.ops import use_backend

LAYERS = {
    "fff": lambda: FFF(6, 4, depth=2, leaf_width=3),
    "ultra": lambda: UltraFFF(6, 4, depth=3, trees=2),
    "tree": lambda: TreeFeedForward(6, 4, depth=3, leaf_width=2),
    "moe": lambda: MoE(6, 4, experts=4, expert_width=3, noise=False),
}


@pytest.fixture(params=["compiled", "reference"])
def backend(request):
    """Whichever kernels the device has, and the reference."""
    with use_backend("reference") if request.param == "reference" else nullcontext():
        yield


def gradient(parameter: Tensor) -> Tensor:
    """0 where none came: that of a decision of `FFF` in inference."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_a_dimension_of_the_tokens(name, grad, backend):
    layer, x = LAYERS[name]().eval(), torch.randn(3, 5, 6)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(torch.vmap(layer, in_dims=1, out_dims=1)(x), layer(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_vmap_over_several_layers(name, grad, backend):
    layers: list[FeedForwardLayer] = [LAYERS[name]().eval() for _ in range(3)]
    x = torch.randn(5, 6)
    parameters, buffers = stack_module_state(layers)

    def run(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(layers[0], (weights, buffers), (x,))

    with torch.set_grad_enabled(grad):
        found, expected = torch.vmap(run)(parameters), torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(found, expected)
    assert found.requires_grad == grad
    if grad:
        found.square().sum().backward()
        expected.square().sum().backward()
        for key, parameter in parameters.items():
            each = torch.stack([gradient(layer.get_parameter(key)) for layer in layers])
            torch.testing.assert_close(gradient(parameter), each)


@pytest.mark.parametrize("name", LAYERS)
def test_other_transforms_are_refused(name, backend):
    layer, x = LAYERS[name]().eval(), torch.randn(5, 6)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            transform(lambda x: layer(x).sum())(x)
    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(RuntimeError, match="setup_context"):
            transform(lambda x: layer(x).sum())(x)
