"""Expert retrieval by product keys against a search of all pairs, one token and head after the other."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.bench.check import _clear
from fastff.nn import PEER, auxiliary_loss

F64 = torch.float64


def make(**options: object) -> PEER:
    return PEER(6, 4, **({"experts": 25, "heads": 3, "top_k": 2, "key_features": 4} | options), dtype=F64)


def by_hand(layer: PEER, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the experts of each token, (T, heads, top_k)."""
    n = layer.key_weight.shape[1]
    y, chosen = x.new_zeros(len(x), 4), []
    for t, token in enumerate(x):
        for weight in layer.query_weight:
            query = weight @ token
            query = (query - query.mean()) / (query.var(unbiased=False) + 1e-5).sqrt()
            scores = {
                i * n + j: query[:2] @ layer.key_weight[0, i] + query[2:] @ layer.key_weight[1, j]
                for i in range(n)
                for j in range(n)
            }
            best = sorted(scores, key=lambda e: -scores[e].item())[: layer.top_k]
            gates = torch.stack([scores[e] for e in best]).softmax(0)
            for gate, e in zip(gates, best, strict=True):
                z = layer.expert_w1[e, 0] @ token + layer.expert_b1[e, 0]
                y[t] += gate * F.gelu(z) * layer.expert_w2[e, 0]
            chosen.append(best)
    return y, torch.tensor(chosen).view(len(x), -1)


def test_equals_a_search_of_all_pairs():
    for options in ({}, {"top_k": 5}, {"experts": 1, "top_k": 1}, {"heads": 1, "top_k": 1}):
        layer, x = make(**options), torch.randn(9, 6, dtype=F64)
        y = layer(x)
        expected, chosen = by_hand(layer, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(layer.routing.leaf, chosen)


def test_everything_learns():
    layer, x = make(), torch.randn(50, 6, dtype=F64, requires_grad=True)
    layer(x).square().sum().backward()
    grads = dict(layer.named_parameters()) | {"x": x}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in grads.values())
    small = make(heads=2)
    parameters = tuple(small.parameters())
    call = lambda x, *p: torch.func.functional_call(small, dict(zip(small.parameter_names, p, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x[:3], *parameters))


def test_routing_counts_choices_and_sums_gates():
    layer, x = make(), torch.randn(50, 6, dtype=F64)
    layer(x)
    routing = layer.routing
    assert routing.leaf.shape == (50, 6)
    assert torch.equal(routing.leaf_counts[0], torch.bincount(routing.leaf.flatten(), minlength=25))
    assert torch.equal(routing.load, routing.leaf_counts[0].float())
    torch.testing.assert_close(routing.importance.sum(), torch.tensor(150.0))  # a softmax for each token and head
    assert auxiliary_loss(layer, importance=1.0).item() > 0


def test_the_bench_compares_rows_whose_choice_is_clear_of_rounding():
    layer, x = make(), torch.randn(50, 6, dtype=F64)
    with torch.no_grad():
        layer.key_weight[:, 1] = layer.key_weight[:, 0]  # equal: a choice between them is a draw
    clear = _clear(layer, x, torch.float32)
    score = lambda e: e // 5 < 2 or e % 5 < 2  # noqa: E731
    layer(x)
    tied = torch.tensor([any(score(e) for e in row) for row in layer.routing.leaf.tolist()])
    assert clear.any()
    assert not clear[tied].all()
    assert clear[~tied].all()
