"""The fast feedforward layer of P2 (UltraFastBERT): every neuron decides and computes."""

from typing import Any

import torch
from torch import Tensor, nn

from fastff.nn.layer import DEEPEST, one_of, uniform_, whole_number
from fastff.nn.routing import TreeRouting
from fastff.nn.tree_layer import TreeLayer
from fastff.ops import Leaves, tree_feedforward


class UltraFFF(TreeLayer):
    """Tree of neurons (Belcak & Wattenhofer, "Exponentially Faster Language Modelling", 2023).

    From the root of each of K trees, on each of depth + 1 levels, v = w_in[n] . x + b_in[n]; the output gains
    activation(v) * w_out[n]; the way goes right where v >= 0. The same function in training and inference; no gradient
    flows through the decisions, as in the paper.

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        depth: P1's depth, 0 or more: a tree has 2^(depth + 1) - 1 neurons, a token runs depth + 1 of each.
        trees: K, whose outputs are summed. P2's "KxD" is trees=K, depth=D; 3072x0 is a dense layer without second bias.
        activation: a key of `fastff.ops.ACTIVATIONS`.
        sparse: whether gradients are sparse tensors of the rows that tokens passed, as of `nn.Embedding(sparse=True)`;
            for `fastff.optim.RowwiseAdamW`. The compiled CPU kernels make them; elsewhere gradients are dense.
        device, dtype: of the parameters.

    Parameters: w_in (K, N, in), b_in (K, N), w_out (K, N, out), N = 2^(depth + 1) - 1; initialised
    uniform(+-1/sqrt(in)), w_out uniform(+-1/sqrt(K * (depth + 1))).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    w_in: nn.Parameter
    b_in: nn.Parameter
    w_out: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        depth: int,
        trees: int = 1,
        activation: str = "gelu",
        sparse: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.depth = whole_number("depth", depth, 0, DEEPEST)
        self.trees = whole_number("trees", trees, 1)
        self.sparse = one_of("sparse", sparse, (True, False))
        K, N = self.trees, 2 ** (self.depth + 1) - 1
        shapes = {"w_in": (K, N, self.in_features), "b_in": (K, N), "w_out": (K, N, self.out_features)}
        self._register(shapes, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise anew."""
        uniform_(self.w_in, self.in_features)
        uniform_(self.b_in, self.in_features)
        uniform_(self.w_out, self.inference_width)

    @property
    def training_width(self) -> int:
        """Neurons of all trees: trees * (2^(depth + 1) - 1)."""
        return self.trees * (2 ** (self.depth + 1) - 1)

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: trees * (depth + 1)."""
        return self.trees * (self.depth + 1)

    def multiply_adds(self, *, training: bool) -> int:
        return self.inference_width * (self.in_features + self.out_features)

    def forward_tokens(self, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor) -> Tensor:
        y, path = tree_feedforward(
            x, w_in, b_in, w_out, activation=self.activation, gradient="none", sparse=self.sparse
        )
        self._remember(*path)
        return y

    def _routing(self, logits: Tensor, end: Tensor) -> TreeRouting:
        """The neurons of the last level are the leaves; what they decide, the last bit of `end`, leads nowhere."""
        inner = 2**self.depth - 1
        return TreeRouting(logits[..., :-1], end >> 1, inner, inner + 1, soft=False)

    def decisions(self) -> tuple[Tensor, Tensor]:
        inner = 2**self.depth - 1
        return self.w_in[:, :inner], self.b_in[:, :inner]

    def tree_weights(self) -> dict[str, Tensor | Leaves | None]:
        return {"node_weight": self.w_in, "node_bias": self.b_in, "node_out": self.w_out}

    def block_counts(self) -> dict[str, Tensor]:
        counts = torch.cat([self.routing.path_counts, self.routing.leaf_counts], dim=1)
        return {name: counts for name, _ in self.named_parameters()}

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, depth={self.depth}, trees={self.trees}, "
            f"activation={self.activation!r}"
        )
