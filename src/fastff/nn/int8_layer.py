"""Layers whose weights can be in int8: what `fastff.quantize` makes of them, and how they run then."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastff.nn.float_buffers import FloatBuffers
from fastff.nn.layer import autocasts_input
from fastff.nn.routed import RoutedLayer
from fastff.ops import Int8Shape, Int8Tree, Path, tree_int8


class Int8Layer(FloatBuffers, RoutedLayer):
    """A layer whose weights `quantize` turns into int8, but for their scales."""

    int8: Int8Shape | None = None  # once they are

    @abstractmethod
    def weights_in_int8(self) -> tuple[Int8Tree, Int8Shape]:
        """The layer's weights in int8, all but `float_parameters`.

        Raises:
            ValueError: a weight is no number or infinite.
        """

    @abstractmethod
    def _remember_path(self, path: Path) -> None:
        """Remember what a forward in int8 decided, as a forward before did."""

    def quantize(self) -> None:
        """Turn the weights into int8, in place: buffers, named as in `fastff.ops.Int8Tree`.

        Raises:
            RuntimeError: they are already.
            ValueError: a weight is no number or infinite.
        """
        if self.int8 is not None:
            raise RuntimeError(f"{type(self).__name__} is in int8 already")
        with torch.no_grad():
            tree, self.int8 = self.weights_in_int8()
        for name in self.parameter_names:
            if name not in self.float_parameters:
                delattr(self, name)
        self.parameter_names = self.float_parameters
        for name, tensor in tree._asdict().items():
            if tensor is not None:
                self.register_buffer(name, tensor)
        self.__dict__.pop("_record", None)

    @property
    def int8_tree(self) -> Int8Tree:
        """The weights of a layer in int8."""
        return Int8Tree(**self._buffers)  # type: ignore[arg-type]  # there are no others

    @property
    def float_parameters(self) -> tuple[str, ...]:
        """Those that stay as they are when the layer is quantised."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        """As of `FeedForwardLayer`; in int8, x may have any dtype that the operators take, and y has the same.

        Raises:
            RuntimeError: a layer in int8 is in training mode.
        """
        if self.int8 is None:
            return super().forward(x)
        if self.training:
            raise RuntimeError(f"{type(self).__name__} in int8 does not train: call eval() first")
        self._check_input(x, None, autocasts=False)
        if autocasts_input(x):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tokens = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        y, path = tree_int8(tokens, self.int8_tree, self.int8, activation=self.activation)
        self._remember_path(path)
        y = self.beside(tokens, y)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        """y with what the layer adds in float, x and y (T, ...): nothing, but where a subclass has more."""
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        stored = prefix + "in_rows" in state_dict
        if stored != (self.int8 is not None) and any(name.startswith(prefix) for name in state_dict):
            *_, errors = others
            kinds = ("int8", "floating point") if stored else ("floating point", "int8")
            hint = ": call fastff.quantize(model) before it is loaded" if stored else ""
            whose = prefix.rstrip(".") or "the layer"
            errors.append(f"the weights of {whose} are in {kinds[0]}, those of the model in {kinds[1]}{hint}")
            return
        super()._load_from_state_dict(state_dict, prefix, *others)
