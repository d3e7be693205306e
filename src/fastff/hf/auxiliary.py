"""Hugging Face's Trainer with the auxiliary losses of routed layers."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from fastff.nn import auxiliary_loss


class AuxiliaryLossTrainer(Trainer):
    """Trains with the auxiliary losses; what it returns and logs is the loss without them.

    Args:
        balance: weight of the balance loss of trees, and of the importance and load losses of MoEs.
        kwargs: of Trainer.
    """

    def __init__(self, balance: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.balance = balance
        # The loss is the mean of the batch whatever the model would do with the number of labels of a step.
        self.model_accepts_loss_kwargs = False
        self._auxiliary = torch.zeros(())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            auxiliary = auxiliary_loss(model, balance=self.balance, importance=self.balance, load=self.balance)
            self._auxiliary = auxiliary.detach()
            loss = loss + auxiliary
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs)
        return loss - self._auxiliary / self.current_gradient_accumulation_steps
