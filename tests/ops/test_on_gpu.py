"""What only a GPU shows: graphs, PyTorch's code generator, offsets beyond 32 bits, a second device.

`make gpu-check` runs these tests.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastff
from fastff.nn import FeedForwardLayer


@pytest.fixture(autouse=True)
def gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("no GPU is asked for by FASTFF_TEST_DEVICE=cuda")


def layers() -> Iterator[tuple[FeedForwardLayer, Tensor]]:
    """In bfloat16, with more tokens than go alone."""
    for layer in (
        fastff.UltraFFF(64, 64, depth=7),
        fastff.TreeFeedForward(64, 64, depth=7, leaf_width=2),
        fastff.MoE(64, 64, experts=4, expert_width=16, noise=False),
    ):
        yield layer.to(torch.bfloat16), torch.randn(1000, 64, dtype=torch.bfloat16)


def gradients(layer: FeedForwardLayer, x: Tensor, grad_y: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], grad_y, materialize_grads=True)]


def test_a_graph_repeats_what_it_captured():
    for layer, x in layers():
        grad_y = torch.randn_like(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # for all of it: autograd's nodes belong to a stream
            gradients(layer, x, grad_y)  # compiles
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                captured = gradients(layer, x, grad_y)
            x.copy_(torch.randn_like(x))
            graph.replay()
            for found, expected in zip(captured, gradients(layer, x, grad_y), strict=True):
                assert torch.equal(found, expected)


# What PyTorch says of the two gates of the small mixture of experts, and of a graph that holds its memory alone.
@pytest.mark.filterwarnings("ignore:(?s).*Online softmax is disabled", "ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_generated_code_computes_the_same(mode):
    """With reduce-overhead it captures forward and backward as graphs; the third call replays them."""
    for layer, x in layers():
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        for _ in range(3):
            x, grad_y = torch.randn_like(x), torch.randn_like(x)
            torch.compiler.cudagraph_mark_step_begin()
            found = [t.clone() for t in gradients(compiled, x, grad_y)]
            for own, expected in zip(found, gradients(layer, x, grad_y), strict=True):
                assert (own - expected).norm() <= 0.02 * expected.norm()


@torch.no_grad()
def test_offsets_beyond_32_bits():
    features, tokens = 8192, 2**31 // 8192 + 100
    layer = fastff.UltraFFF(features, features, depth=3).to(torch.bfloat16)
    x = torch.randn(tokens, features, dtype=torch.bfloat16)
    assert torch.equal(layer(x)[-80:], layer(x[-80:]))


def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    for layer, x in layers():
        expected = gradients(layer, x, torch.ones_like(x))
        found = gradients(layer.to("cuda:1"), x.to("cuda:1"), torch.ones_like(x, device="cuda:1"))
        assert all(torch.equal(f.cpu(), e.cpu()) for f, e in zip(found, expected, strict=True))
