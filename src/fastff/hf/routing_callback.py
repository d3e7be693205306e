"""A callback of Trainer that watches how layers use their leaves."""

import warnings
from typing import Any

import accelerate.utils
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastff.nn.usage import LayerUse, add_use, collapse_warning

SHOWN = ("leaves", "effective_leaves", "used_leaves", "mean_entropy")


class RoutingCallback(TrainerCallback):
    """Tells of each evaluation how the routed layers used their leaves, over all its batches and processes.

    `state.log_history` gets a row {"step", "routing"}, and a UserWarning comes with the first collapse onto few leaves.

    Attributes:
        routing: of the newest evaluation, per layer name: leaves, effective_leaves (exp of the entropy of their usage),
            used_leaves (share that is used) and mean_entropy (of the decisions, nats).
    """

    def __init__(self) -> None:
        self.routing: dict[str, dict[str, float]] = {}
        self._warned = False
        self._layers: dict[str, LayerUse] = {}

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        add_use(model, self._layers)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.take(args.device)
        row: dict[str, Any] = {"step": state.global_step, "routing": self.routing}
        state.log_history.append(row)
        warning = collapse_warning(self.routing)
        if warning and not self._warned and state.is_world_process_zero:
            self._warned = True
            warnings.warn(warning, stacklevel=2)

    def take(self, device: torch.device) -> None:
        """Set `routing` from the batches since the last call, those of all processes."""
        for use in self._layers.values():
            use.map(lambda counts: accelerate.utils.reduce(counts.to(device), "sum").cpu())
        uses = {name: use.to_dict() for name, use in self._layers.items()}
        self._layers = {}
        self.routing = {name: {key: use[key] for key in SHOWN} for name, use in uses.items()}
