"""Parameter-efficient expert retrieval (He 2024): a million experts of one neuron each, found by product keys."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.expert_layer import ExpertLayer
from fastff.nn.int8_layer import Int8Layer
from fastff.nn.layer import probability, uniform_, whole_number
from fastff.nn.routing import ExpertRouting
from fastff.nn.shared import master_leaf, master_shapes, project
from fastff.ops import Int8Shape, Int8Tree, Leaves, Path, product_keys, quantise_experts


class PEER(ExpertLayer, Int8Layer):
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
        rank: R; queries and experts see LayerNorm(P x), P (R, in), in place of x, as in `TreeFeedForward`: queries then
            cost next to nothing, and an expert about half. None: they see x, as in the paper.
        master_width: neurons of a master leaf: a dense layer beside the experts, with `activation` and no output bias,
            of which every token runs all.
        dropout: probability in [0, 1) with which an expert is left out in training.
        device, dtype: of the parameters.

    Parameters (R = rank or in, M = master_width): query_weight (heads, key_features, R), key_weight
    (2, n, key_features / 2), expert_w1 (experts, 1, R), expert_b1 (experts, 1), expert_w2 (experts, 1, out), projection
    (R, in) if rank, master_w1 (M, in), master_b1 (M,) and master_w2 (M, out) if master_width.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    query_weight: nn.Parameter
    key_weight: nn.Parameter
    projection: nn.Parameter  # if there is a rank
    master_w1: nn.Parameter  # if there is a master leaf
    master_b1: nn.Parameter
    master_w2: nn.Parameter

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
        rank: int | None = None,
        master_width: int = 0,
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
        self.rank = None if rank is None else whole_number("rank", rank, 1)
        self.master_width = whole_number("master_width", master_width, 0)
        self.dropout = probability("dropout", dropout)
        I, O, Q = self.in_features, self.out_features, self.key_features
        R = self.rank or I
        shapes: dict[str, tuple[int, ...]] = {
            "query_weight": (self.heads, Q, R),
            "key_weight": (2, n, Q // 2),
            "expert_w1": (experts, 1, R),
            "expert_b1": (experts, 1),
            "expert_w2": (experts, 1, O),
            **({"projection": (R, I)} if self.rank else {}),
            **master_shapes(self.master_width, I, O),
        }
        self._register(shapes, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise anew; what leads to the output as in a dense layer of heads * top_k + master_width neurons."""
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name == "projection":
                    p.normal_(0, self.in_features**-0.5)
                elif name.endswith("w2"):
                    uniform_(p, self.heads * self.top_k + self.master_width)
                elif name == "key_weight":
                    uniform_(p, self.key_features // 2)
                else:
                    uniform_(p, self.in_features if name.startswith("master") else self.rank or self.in_features)

    @property
    def training_width(self) -> int:
        """Neurons of all experts, and of the master leaf."""
        return self.experts + self.master_width

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: heads * (key_features + top_k) + master_width, queries counted as neurons."""
        return self.heads * (self.key_features + self.top_k) + self.master_width

    def multiply_adds(self, *, training: bool) -> int:
        """Projection, queries, their products with the keys, the chosen experts, and the master leaf."""
        I, O, R = self.in_features, self.out_features, self.rank or self.in_features
        queries = self.heads * self.key_features * (R + math.isqrt(self.experts))
        shared = (R * I if self.rank else 0) + self.master_width * (I + O)
        return queries + self.heads * self.top_k * (R + O) + shared

    def seen(self, x: Tensor) -> Tensor:
        """What queries and experts see of tokens (T, in)."""
        return x if self.rank is None else project(x, self.projection.to(x.dtype))

    def forward_tokens(
        self,
        x: Tensor,
        query_weight: Tensor,
        key_weight: Tensor,
        expert_w1: Tensor,
        expert_b1: Tensor,
        expert_w2: Tensor,
        projection: Tensor | None = None,
        master_w1: Tensor | None = None,
        master_b1: Tensor | None = None,
        master_w2: Tensor | None = None,
    ) -> Tensor:
        seen = x if projection is None else project(x, projection)
        score_THk, chosen_THk = best_pairs(seen, query_weight, key_weight, self.top_k)
        chosen, gate = chosen_THk.flatten(1), score_THk.softmax(-1).flatten(1)
        self._remember(chosen, gate)
        y = self.run_experts(seen, chosen, gate, expert_w1, expert_b1, expert_w2)
        if master_w1 is not None and master_b1 is not None and master_w2 is not None:
            y = y + master_leaf(x, master_w1, master_b1, master_w2, self.activation)
        return y

    def weights_in_int8(self) -> tuple[Int8Tree, Int8Shape]:
        master = Leaves(self.master_w1, self.master_b1, self.master_w2) if self.master_width else None
        return quantise_experts(
            self.query_weight,
            self.key_weight,
            self.top_k,
            Leaves(self.expert_w1, self.expert_b1, self.expert_w2),
            self.projection if self.rank else None,
            master,
        )

    def _remember_path(self, path: Path) -> None:
        self._remember(path.leaf, path.logits.squeeze(-1))

    def _routing(self, chosen: Tensor, gate: Tensor) -> ExpertRouting:
        none = gate.new_zeros(self.experts, dtype=torch.float32)
        importance = none.index_add(0, chosen.flatten(), gate.flatten().float())
        load = torch.bincount(chosen.flatten(), minlength=self.experts).float()
        return ExpertRouting(chosen, self.experts, importance, load)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, experts={self.experts}, heads={self.heads}, "
            f"top_k={self.top_k}, key_features={self.key_features}, activation={self.activation!r}"
            f"{f', rank={self.rank}' if self.rank else ''}"
            f"{f', master_width={self.master_width}' if self.master_width else ''}"
        )


def best_pairs(x: Tensor, query_weight: Tensor, key_weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of all pairs of keys, for each head: scores and numbers of experts, both (T, heads, count)."""
    heads, Q, _ = query_weight.shape
    query_THQ = F.layer_norm(F.linear(x, query_weight.flatten(0, 1)).view(-1, heads, Q), (Q,))
    return product_keys(query_THQ, key_weight, count)
