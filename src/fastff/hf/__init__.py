"""Fast feedforward layers in Hugging Face Transformers: UltraFastBERT, and any other architecture.

Importing it registers both with Transformers' Auto classes.
"""

from fastff.hf.auxiliary import AuxiliaryLossTrainer
from fastff.hf.model_card import write_model_card
from fastff.hf.replace import FeedForwardConfig, FeedForwardFunction, feedforward_modules, replace_feedforward
from fastff.hf.routing_callback import RoutingCallback
from fastff.hf.ultra_fast_bert import (
    UltraFastBertConfig,
    UltraFastBertForMaskedLM,
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
    UltraFastBertModel,
)

__all__ = [
    "AuxiliaryLossTrainer",
    "FeedForwardConfig",
    "FeedForwardFunction",
    "RoutingCallback",
    "UltraFastBertConfig",
    "UltraFastBertForMaskedLM",
    "UltraFastBertForQuestionAnswering",
    "UltraFastBertForSequenceClassification",
    "UltraFastBertForTokenClassification",
    "UltraFastBertModel",
    "feedforward_modules",
    "replace_feedforward",
    "write_model_card",
]
