"""Modules whose buffers keep float32."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class FloatBuffers(nn.Module):
    """A module whose floating-point buffers keep their dtype, whatever the model is brought to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: t for name, t in self._buffers.items() if t is not None and t.is_floating_point()}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            new = self._buffers[name]
            if new is not None and new.dtype != before.dtype:
                self._buffers[name] = before.to(new.device)
        return self
