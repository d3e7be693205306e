"""UltraFastBERT for classification of sequences and tokens, and for extractive question answering."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from fastff.hf.ultra_fast_bert.configuration import UltraFastBertConfig
from fastff.hf.ultra_fast_bert.modeling import UltraFastBertModel, UltraFastBertPreTrainedModel


class UltraFastBertForSequenceClassification(UltraFastBertPreTrainedModel):
    """P2's head: the first token (or the mean), a hidden layer with tanh, dropout, the classes."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.classifier_hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify each sequence; arguments as of `UltraFastBertModel`.

        Args:
            labels: (B,) int64 classes or, for one label, floats; (B, num_labels) floats for several labels at once.

        Returns:
            logits (B, num_labels), and the loss if labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        pooled = _pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(torch.tanh(self.dense(pooled))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class UltraFastBertForTokenClassification(UltraFastBertPreTrainedModel):
    """Dropout and the classes, for each token."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify each token; arguments as of `UltraFastBertModel`.

        Args:
            labels: (B, S) int64, -100 where there is none.

        Returns:
            logits (B, S, num_labels), and the loss if labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class UltraFastBertForQuestionAnswering(UltraFastBertPreTrainedModel):
    """The start and the end of the answer among the tokens."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.classifier = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Find the answer; arguments as of `UltraFastBertModel`.

        Args:
            start_positions, end_positions: (B,) int64, the answer's first and last token; outside 0 to S - 1: ignored.

        Returns:
            start_logits and end_logits (B, S), and the loss if positions are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = self.classifier(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _pool(x_BSH: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """(B, hidden): the first token, or the mean of the real ones."""
    if pooling == "first":
        return x_BSH[:, 0]
    if attention_mask is None:
        return x_BSH.mean(1)
    real = attention_mask.unsqueeze(-1).to(x_BSH.dtype)
    return (x_BSH * real).sum(1) / real.sum(1).clamp_min(1)
