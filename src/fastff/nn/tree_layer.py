"""Layers made of one or more trees: what they decided, and their weights in int8."""

from abc import abstractmethod

from torch import Tensor

from fastff.nn.int8_layer import Int8Layer
from fastff.nn.routing import TreeRouting
from fastff.ops import Int8Shape, Int8Tree, Leaves, Path, quantise_tree


class TreeLayer(Int8Layer):
    """A layer made of one or more trees."""

    depth: int

    @property
    def routing(self) -> TreeRouting:
        """What the last forward decided; RuntimeError if the layer has not run yet."""
        routing = super().routing
        assert isinstance(routing, TreeRouting)
        return routing

    @abstractmethod
    def decisions(self) -> tuple[Tensor, Tensor]:
        """Weight (K, N, in) and bias (K, N) of the nodes that decide, breadth first; views of the parameters."""

    def seen(self, x: Tensor) -> Tensor:
        """What decisions see of tokens (T, in)."""
        return x

    @abstractmethod
    def tree_weights(self) -> dict[str, Tensor | Leaves | None]:
        """The arguments of `fastff.ops.quantise_tree`; whatever else the layer has is no part of its trees."""

    def weights_in_int8(self) -> tuple[Int8Tree, Int8Shape]:
        return quantise_tree(**self.tree_weights())  # type: ignore[arg-type]

    def _remember_path(self, path: Path) -> None:
        self._remember(*path)
