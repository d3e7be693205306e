"""Layers made of experts: how the chosen ones run, and how many tokens passed each."""

from torch import Tensor, nn

from fastff.nn.routed import RoutedLayer
from fastff.ops import indexed_feedforward


class ExpertLayer(RoutedLayer):
    """A layer of experts, of which a token runs those that it chooses, in training too."""

    experts: int
    dropout: float  # with which an expert's hidden neuron is left out in training
    expert_w1: nn.Parameter
    expert_b1: nn.Parameter
    expert_w2: nn.Parameter

    def run_experts(
        self, x: Tensor, chosen: Tensor, gate: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor | None = None
    ) -> Tensor:
        """Sum over the experts `chosen` (T, S) of a token x (T, in), each weighed by `gate` (T, S): (T, out)."""
        dropout = self.dropout if self.training else 0.0
        return indexed_feedforward(x, chosen, w1, b1, w2, b2, activation=self.activation, gate=gate, dropout=dropout)

    def block_counts(self) -> dict[str, Tensor]:
        counts = self.routing.leaf_counts[0]
        return {name: counts for name, _ in self.named_parameters() if name.startswith("expert")}
