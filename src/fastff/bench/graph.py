"""CUDA graphs of timed calls: what is left of a time when nothing has to be launched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastff.bench.passes import Call

WARM_UP = 3  # calls before a capture, in which kernels are compiled and memory is taken


def graphed(call: Call, module: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Callable[[], list[Any]]:
    """`call` on each of the batches, one after the other, captured as one graph: what starts a graph takes as long as a
    few kernels.

    Args:
        call: runs `module`.
        module: may have run before, and its layer hold what autograd would sort into the stream of that run.
        batches: of which each call uses the memory; nothing is copied.

    Returns:
        Replays all calls; returns what each put out.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        with torch.no_grad():
            getattr(module, "definition", module)(batches[0][0])  # takes the place of what the layer holds
        for _ in range(WARM_UP):
            call(*batches[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # that of the warm-up, to which autograd's nodes belong
        outputs = [call(*batch) for batch in batches]

    def replay() -> list[Any]:
        graph.replay()
        return outputs

    return replay
