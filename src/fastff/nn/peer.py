"""Parameter-efficient expert retrieval (He 2024): a million experts of one neuron each, found by product keys."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.expert_layer import ExpertLayer
from fastff.nn.layer import probability, uniform_, whole_number
from fastff.nn.routing import ExpertRouting


class PEER(ExpertLayer):
    """Each head looks for the `top_k` best of n^2 single neurons ("Mixture of A Million Experts", arXiv 2407.04153).

    A head's query has two halves. Each is compared with n keys of its half; expert (i, j) scores the sum of the i-th
    key's product with the first half and the j-th key's with the second, so that 2 n products find the best of n^2
    (section 2, "product key retrieval"). The softmax over a head's chosen scores weighs its experts; all heads share
    keys and experts, and are summed. Queries pass a LayerNorm without parameters, in place of the paper's batch norm,
    so that a token's output does not depend on the batch.

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        experts: n^2, a square number.
        heads: queries a token.
        top_k: experts a head, at most n.
        key_features: size of a query, even: a key has half of it.
        activation: of the experts, a key of `fastff.ops.ACTIVATIONS`.
        dropout: probability in [0, 1) with which an expert is left out in training.
        device, dtype: of the parameters.

    Parameters: query_weight (heads, key_features, in), key_weight (2, n, key_features / 2), expert_w1 (experts, 1, in),
    expert_b1 (experts, 1), expert_w2 (experts, 1, out).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    query_weight: nn.Parameter
    key_weight: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        experts: int,
        heads: int = 8,
        top_k: int = 16,
        key_features: int = 64,
        activation: str = "gelu",
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.experts = whole_number("experts", experts, 1)
        self.heads = whole_number("heads", heads, 1)
        self.top_k = whole_number("top_k", top_k, 1)
        self.key_features = whole_number("key_features", key_features, 2)
        n = math.isqrt(experts)
        if n * n != experts:
            raise ValueError(f"experts must be a square number, such as {n * n} or {(n + 1) ** 2}, got {experts}")
        if self.top_k > n:
            raise ValueError(f"top_k must be at most the square root of experts, {n}, got {top_k}")
        if self.key_features % 2:
            raise ValueError(f"key_features must be even, got {key_features}")
        self.dropout = probability("dropout", dropout)
        I, O, Q = self.in_features, self.out_features, self.key_features
        shapes = {
            "query_weight": (self.heads, Q, I),
            "key_weight": (2, n, Q // 2),
            "expert_w1": (experts, 1, I),
            "expert_b1": (experts, 1),
            "expert_w2": (experts, 1, O),
        }
        self._register(shapes, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise anew; output rows as those of a dense layer of heads * top_k neurons."""
        for p, fan in (
            (self.query_weight, self.in_features),
            (self.key_weight, self.key_features // 2),
            (self.expert_w1, self.in_features),
            (self.expert_b1, self.in_features),
            (self.expert_w2, self.heads * self.top_k),
        ):
            uniform_(p, fan)

    @property
    def training_width(self) -> int:
        """Neurons of all experts."""
        return self.experts

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: heads * (key_features + top_k), queries and experts."""
        return self.heads * (self.key_features + self.top_k)

    def multiply_adds(self, *, training: bool) -> int:
        """Queries, their products with the keys, and the chosen experts."""
        queries = self.heads * self.key_features * (self.in_features + math.isqrt(self.experts))
        return queries + self.heads * self.top_k * (self.in_features + self.out_features)

    def forward_tokens(
        self,
        x: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        expert_w1: Tensor,
        expert_b1: Tensor,
        expert_w2: Tensor,
    ) -> Tensor:
        score_THk, chosen_THk = best_pairs(x, query_weight, key_weight, self.top_k)
        chosen, gate = chosen_THk.flatten(1), score_THk.softmax(-1).flatten(1)
        self._remember(chosen, gate)
        return self.run_experts(x, chosen, gate, expert_w1, expert_b1, expert_w2)

    def _routing(self, chosen: Tensor, gate: Tensor) -> ExpertRouting:
        none = gate.new_zeros(self.experts, dtype=torch.float32)
        importance = none.index_add(0, chosen.flatten(), gate.flatten().float())
        load = torch.bincount(chosen.flatten(), minlength=self.experts).float()
        return ExpertRouting(chosen, self.experts, importance, load)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, experts={self.experts}, heads={self.heads}, "
            f"top_k={self.top_k}, key_features={self.key_features}, activation={self.activation!r}"
        )


def best_pairs(x: Tensor, query_weight: Tensor, key_weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of all pairs of keys, for each head: scores and numbers of experts, both (T, heads, count).

    The best pairs are made of the best keys of either half, so n^2 pairs need not be looked at.
    """
    (heads, Q, _), n = query_weight.shape, key_weight.shape[1]
    query_THQ = F.layer_norm(F.linear(x, query_weight.flatten(0, 1)).view(-1, heads, Q), (Q,))
    k = min(count, n)
    (first_THk, row_THk), (second_THk, column_THk) = (
        F.linear(half, keys).topk(k, dim=-1) for half, keys in zip(query_THQ.chunk(2, dim=-1), key_weight, strict=True)
    )
    pairs_THkk = first_THk.unsqueeze(-1) + second_THk.unsqueeze(-2)
    score, pair = pairs_THkk.flatten(-2).topk(count, dim=-1)
    return score, row_THk.gather(-1, pair // k) * n + column_THk.gather(-1, pair % k)
