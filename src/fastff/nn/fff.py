"""The fast feedforward layer of P1: nodes decide, leaves compute."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.layer import DEEPEST, one_of, probability, uniform_, whole_number
from fastff.nn.routing import TreeRouting
from fastff.nn.tree_layer import TreeLayer
from fastff.ops import Leaves, activate, leaf_probabilities, tree_feedforward


class FFF(TreeLayer):
    """Fast feedforward layer (Belcak & Wattenhofer 2023): soft in training, hard in inference.

    Soft, the output is the sum of all leaves weighted by their path probabilities; hard, each token descends by the
    signs of the logits and runs one leaf. Every bias counts in both modes (the authors' package drops the leaves'
    second bias in inference).

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        depth: levels of nodes, 0 or more; 2^depth leaves.
        leaf_width: hidden neurons of a leaf.
        activation: of the leaves, a key of `fastff.ops.ACTIVATIONS`.
        dropout: probability in [0, 1) with which a leaf's hidden neuron is left out in training.
        region_leak: probability in [0, 1) with which a node's p and 1 - p are swapped, drawn for each token and node in
            soft training (P1's child transposition).
        master_width: hidden neurons of the master leaf (Charalampopoulos et al. 2024), a dense layer beside the tree:
            y = sigmoid(g) * tree + (1 - sigmoid(g)) * master, g = `master_gate`. 0: none.
        harden: None: hard in eval(), soft in train(). True or False overrides both; it can be set at any time
            (`layer.harden = False; layer.eval()` evaluates soft). Trained hard, decisions learn by the exact
            straight-through gradient of `fastff.ops.tree_feedforward`; in eval mode the gradient is the function's own.
        device, dtype: of the parameters.

    Parameters (N = 2^depth - 1 nodes, L leaves, W leaf_width): node_weight (N, in), node_bias (N,), leaf_w1 (L, W, in),
    leaf_b1 (L, W), leaf_w2 (L, W, out), leaf_b2 (L, out); with a master leaf master_w1, master_b1, master_w2,
    master_b2 and master_gate (1,). Initialised uniform(+-1/sqrt(in)), the leaves' second layer uniform(+-1/sqrt(W)).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    zero_parameters = ("master_gate",)
    node_weight: nn.Parameter
    node_bias: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        depth: int,
        leaf_width: int,
        activation: str = "relu",
        dropout: float = 0.0,
        region_leak: float = 0.0,
        master_width: int = 0,
        harden: bool | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.depth = whole_number("depth", depth, 0, DEEPEST)
        self.leaf_width = whole_number("leaf_width", leaf_width, 1)
        self.master_width = whole_number("master_width", master_width, 0)
        self.dropout = probability("dropout", dropout)
        self.region_leak = probability("region_leak", region_leak)
        self.harden = one_of("harden", harden, (None, True, False))
        N, L, W, M = 2**self.depth - 1, 2**self.depth, self.leaf_width, self.master_width
        I, O = self.in_features, self.out_features
        shapes: dict[str, tuple[int, ...]] = {
            "node_weight": (N, I),
            "node_bias": (N,),
            "leaf_w1": (L, W, I),
            "leaf_b1": (L, W),
            "leaf_w2": (L, W, O),
            "leaf_b2": (L, O),
        }
        if M:
            shapes |= {
                "master_w1": (M, I),
                "master_b1": (M,),
                "master_w2": (M, O),
                "master_b2": (O,),
                "master_gate": (1,),
            }
        self._register(shapes, device, dtype)

    def reset_parameters(self) -> None:
        """Initialise anew."""
        fans = {"leaf_w2": self.leaf_width, "leaf_b2": self.leaf_width, "master_w2": self.master_width}
        fans["master_b2"] = self.master_width
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name in self.zero_parameters:
                    p.zero_()
                else:
                    uniform_(p, fans.get(name, self.in_features))

    @property
    def training_width(self) -> int:
        """Neurons of all leaves, and of the master leaf: 2^depth * leaf_width + master_width."""
        return 2**self.depth * self.leaf_width + self.master_width

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: depth + leaf_width + master_width."""
        return self.depth + self.leaf_width + self.master_width

    def multiply_adds(self, *, training: bool) -> int:
        """Soft every node and every leaf; trained hard also the other side of each decision."""
        D = self.depth
        hard = not training if self.harden is None else self.harden
        nodes, leaves = (D, 1) if hard else (2**D - 1, 2**D)
        if hard and training:
            nodes, leaves = D + D * (D - 1) // 2, D + 1
        neurons = leaves * self.leaf_width + self.master_width
        return nodes * self.in_features + neurons * (self.in_features + self.out_features)

    @property
    def is_hard(self) -> bool:
        """Whether a forward now would route hard."""
        return not self.training if self.harden is None else self.harden

    def forward_tokens(
        self,
        x: Tensor,
        node_weight: Tensor,
        node_bias: Tensor,
        leaf_w1: Tensor,
        leaf_b1: Tensor,
        leaf_w2: Tensor,
        leaf_b2: Tensor,
        master_gate: Tensor | None = None,
        **master: Tensor,
    ) -> Tensor:
        leaves = Leaves(leaf_w1, leaf_b1, leaf_w2, leaf_b2)
        forward = self._hard if self.is_hard else self._soft
        y = forward(x, node_weight, node_bias, leaves)
        if master_gate is not None:
            y = torch.sigmoid(master_gate) * y + self._master(x, master_gate, **master)
        return y

    def _master(
        self, x: Tensor, gate: Tensor, master_w1: Tensor, master_b1: Tensor, master_w2: Tensor, master_b2: Tensor
    ) -> Tensor:
        """The share of the master leaf."""
        hidden = self._drop(activate(F.linear(x, master_w1, master_b1), self.activation))
        return (1 - torch.sigmoid(gate)) * F.linear(hidden, master_w2.T, master_b2)

    def tree_weights(self) -> dict[str, Tensor | Leaves | None]:
        own = {name: p.unsqueeze(0) for name, p in self.named_parameters() if not name.startswith("master")}
        if self.master_width:
            gate = torch.sigmoid(self.get_parameter("master_gate"))
            own |= {name: gate * own[name] for name in ("leaf_w2", "leaf_b2")}
        leaves = Leaves(*(own.pop(name) for name in ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")))
        return {**own, "leaves": leaves}

    @property
    def float_parameters(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameter_names if name.startswith("master"))

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.master_width:
            return y
        master: dict[str, Tensor] = {name: getattr(self, name).to(x.dtype) for name in self.parameter_names}
        return y + self._master(x, master.pop("master_gate"), **master)

    def _hard(self, x: Tensor, node_weight: Tensor, node_bias: Tensor, leaves: Leaves) -> Tensor:
        y, path = tree_feedforward(
            x,
            node_weight.unsqueeze(0),
            node_bias.unsqueeze(0),
            leaves=Leaves(*(t.unsqueeze(0) for t in leaves if t is not None)),
            activation=self.activation,
            gradient="exact" if self.training else "none",
            dropout=self.dropout if self.training else 0.0,
        )
        self._remember(*path)
        return y

    def _soft(self, x: Tensor, node_weight: Tensor, node_bias: Tensor, leaves: Leaves) -> Tensor:
        """All leaves at once: hidden neurons times their leaf's probability, one product: nothing is (T, L, out)."""
        L, W, _ = leaves.w1.shape
        logits_TN = F.linear(x, node_weight, node_bias)
        self._remember(*_all_nodes(logits_TN))
        p_TN = torch.sigmoid(logits_TN)
        if self.region_leak and self.training:
            p_TN = torch.where(torch.rand_like(p_TN) < self.region_leak, 1 - p_TN, p_TN)
        probability_TL = leaf_probabilities(p_TN)
        hidden = self._drop(activate(F.linear(x, leaves.w1.flatten(0, 1), leaves.b1.flatten()), self.activation))
        weighted = hidden.view(-1, L, W) * probability_TL.unsqueeze(-1)
        assert leaves.b2 is not None
        return weighted.flatten(1) @ leaves.w2.flatten(0, 1) + probability_TL @ leaves.b2

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)

    def _routing(self, logits: Tensor, leaf: Tensor) -> TreeRouting:
        soft = logits.shape[-1] > self.depth  # all nodes; where they are but one, soft and hard records are alike
        return TreeRouting(logits, leaf, 2**self.depth - 1, 2**self.depth, soft=soft)

    def decisions(self) -> tuple[Tensor, Tensor]:
        return self.node_weight.unsqueeze(0), self.node_bias.unsqueeze(0)

    def block_counts(self) -> dict[str, Tensor]:
        routing = self.routing
        nodes, leaves = routing.path_counts[0], routing.leaf_counts[0]
        return {
            name: nodes if name.startswith("node") else leaves
            for name, _ in self.named_parameters()
            if not name.startswith("master")
        }

    def extra_repr(self) -> str:
        extra = "".join(
            f", {n}={getattr(self, n)}" for n in ("dropout", "region_leak", "master_width") if getattr(self, n)
        )
        return (
            f"{self.in_features}, {self.out_features}, depth={self.depth}, leaf_width={self.leaf_width}, "
            f"activation={self.activation!r}{extra}"
        )


def _all_nodes(logits_TN: Tensor) -> tuple[Tensor, Tensor]:
    """The record of soft routing: all logits (T, 1, N), and the leaf (T, 1) of the hard path among them."""
    T, N = logits_TN.shape
    node = torch.zeros(T, 1, dtype=torch.int64, device=logits_TN.device)
    for _ in range((N + 1).bit_length() - 1):
        node = 2 * node + 1 + (logits_TN.gather(1, node) >= 0).long()
    return logits_TN.unsqueeze(1), node - N
