"""UltraFastBERT for Transformers, registered with its Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from fastff.hf.ultra_fast_bert.configuration import CrammedBertConfig, UltraFastBertConfig
from fastff.hf.ultra_fast_bert.heads import (
    UltraFastBertForQuestionAnswering,
    UltraFastBertForSequenceClassification,
    UltraFastBertForTokenClassification,
)
from fastff.hf.ultra_fast_bert.modeling import (
    UltraFastBertForMaskedLM,
    UltraFastBertModel,
    UltraFastBertPreTrainedModel,
)

for _config in (UltraFastBertConfig, CrammedBertConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
for _auto, _model in (
    (AutoModel, UltraFastBertModel),
    (AutoModelForMaskedLM, UltraFastBertForMaskedLM),
    (AutoModelForSequenceClassification, UltraFastBertForSequenceClassification),
    (AutoModelForTokenClassification, UltraFastBertForTokenClassification),
    (AutoModelForQuestionAnswering, UltraFastBertForQuestionAnswering),
):
    _auto.register(UltraFastBertConfig, _model, exist_ok=True)
AutoTokenizer.register(UltraFastBertConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)

__all__ = [
    "UltraFastBertConfig",
    "UltraFastBertForMaskedLM",
    "UltraFastBertForQuestionAnswering",
    "UltraFastBertForSequenceClassification",
    "UltraFastBertForTokenClassification",
    "UltraFastBertModel",
    "UltraFastBertPreTrainedModel",
]
