"""Fast feedforward layers in Hugging Face Transformers: UltraFastBERT, and any other architecture.

Importing it registers both with Transformers' Auto classes.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

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


def distil(model: str, layer: str, data: str, out: str | Path, **settings: Any) -> PreTrainedModel:
    """Put new feedforward layers into a pretrained model and teach them what the original does.

    As the command `fastff distil`, which says what happens: `fastff.hf.distillation.distil`.

    Args:
        model: the original, a folder or hub id.
        layer: `name:option=value,...` as of `fastff.nn.build_layer`: "tree:depth=6,leaf_width=1,trees=8".
        data: text to learn from, a folder or file or hub id.
        out: folder of the run. One that was stopped goes on, one that is finished is not trained again.
        settings: of `fastff.hf.distillation.DistilConfig`; one of `tokens` and `minutes` is needed.

    Returns:
        The model with new layers, in eval mode; it is saved in the folder `model` of `out`.

    Raises:
        ValueError, TypeError: a setting, the model or the data cannot be used, or `out` holds a run with other ones.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    from fastff.hf.distillation import DistilConfig, distil, load_distilled

    config = DistilConfig(model=model, feedforward=layer, data=data, **settings)
    distil(config, out, resume=True)
    return load_distilled(config, out)


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
    "distil",
    "feedforward_modules",
    "replace_feedforward",
    "write_model_card",
]
