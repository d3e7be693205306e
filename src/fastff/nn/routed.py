"""Layers that route: they keep what their last forward decided, for `routing` and `auxiliary_loss`."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastff.nn.layer import FeedForwardLayer
from fastff.nn.routing import Routing


class RoutedLayer(FeedForwardLayer):
    """A layer that remembers the tensors of its last routing. They are no state: not saved, copied or exported."""

    _record: tuple[Tensor, ...] | None = None
    _routing: Callable[..., Routing]  # from the remembered tensors

    def _remember(self, *tensors: Tensor) -> None:
        if not torch.compiler.is_exporting():
            self.__dict__["_record"] = tensors  # no parameter or module: the quick way

    @property
    def routing(self) -> Routing:
        """What the last forward decided.

        Raises:
            RuntimeError: the layer has not run yet.
        """
        if self._record is None:
            raise RuntimeError(f"{type(self).__name__} has no routing yet: run it on some input first")
        return self._routing(*self._record)

    @property
    def has_routing(self) -> bool:
        """Whether a forward has been run, so that `routing` can be read."""
        return self._record is not None

    @abstractmethod
    def block_counts(self) -> dict[str, Tensor]:
        """Of each parameter that is made of blocks (nodes, leaves, experts), by name: the tokens of the last forward
        that passed each block, int64, of the shape of the parameter's leading dimensions.
        """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_record"}
