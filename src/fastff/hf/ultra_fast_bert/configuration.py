"""The shape of an UltraFastBERT, and the translation of the authors' config.json into it."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from fastff.hf.check_layer import check_layer
from fastff.hf.recommended import with_options
from fastff.hf.ultra_fast_bert.crammed import MODEL_TYPE as CRAMMED
from fastff.hf.ultra_fast_bert.crammed import translate_config
from fastff.ops import ACTIVATIONS

# Of a damaged config.json; a model beyond them would be built for hours, or ask for more memory than there is anywhere.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**16,
    "max_position_embeddings": 2**24,
    "classifier_hidden_size": 2**20,
}


@strict
class UltraFastBertConfig(PreTrainedConfig):
    """Crammed BERT (Geiping & Goldstein 2022) with the feedforward layer of your choice; by default UltraFastBERT-1x11.

    Args:
        feedforward: the layer by name, see `fastff.nn.parse_layer`: "ultra:depth=11,trees=1" (UltraFastBERT 1x11),
            "tree:depth=4,leaf_width=8", "dense:width=3072" (crammed BERT), "moe:...", "fff:..."; "tree" or
            "peer" alone, see docs/guides/choose.md; None leaves the feedforward layers out.
        int8: whether the trees of `feedforward` are in int8; `save_pretrained` notes it after `fastff.quantize`.
        hidden_act: activation of `feedforward` where that names none, a key of `fastff.ops.ACTIVATIONS`.
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, pad_token_id: as of any BERT.
        initializer_range: standard deviation of the initial weights.
        max_position_embeddings: longest sequence. Positions are sinusoids without parameters, so it can be set anew.
        layer_norm_eps: of all norms.
        hidden_dropout_prob, attention_probs_dropout_prob: in training; the paper pretrains with 0, fine-tunes with 0.1.
        sparse_prediction: given labels, the masked language model computes the logits of the labelled positions alone,
            (labelled, vocab_size), as the paper does; False: of all positions.
        classifier_pooling: what a sequence classifier looks at, the first token or the mean of the real ones.
        classifier_hidden_size: width of its hidden layer.
        classifier_dropout: of all classifiers.

    Raises:
        ValueError: a value out of range or unknown (huggingface_hub's StrictDataclassError: of another type).
    """

    model_type = "ultrafastbert"

    vocab_size: int = 32768
    hidden_size: int = 768
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    feedforward: str | None = "ultra:depth=11"
    int8: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 128
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    sparse_prediction: bool = True
    classifier_pooling: Literal["first", "mean"] = "first"
    classifier_hidden_size: int = 1024
    classifier_dropout: float | int = 0.1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for name, most in LARGEST.items():
            least = 0 if name == "num_hidden_layers" else 1
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be {least} to {most}, got {getattr(self, name)}")
        pad, vocabulary = self.pad_token_id, self.vocab_size
        if pad is not None and not 0 <= pad < vocabulary:
            raise ValueError(f"pad_token_id must be 0 to vocab_size - 1 = {vocabulary - 1}, got {pad}")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"hidden_size must be a multiple of num_attention_heads, {heads}, got {self.hidden_size}")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even, for sines and cosines, got {self.hidden_size}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        if self.feedforward is not None:
            check_layer(self.feedforward)
            self.feedforward = with_options(self.feedforward, self.hidden_size, masked=True)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, unused = super().get_config_dict(*args, **kwargs)
        return translate_config(config) if config.get("model_type") == CRAMMED else config, unused


class CrammedBertConfig(PreTrainedConfig):
    """Stands for the authors' `model_type`, so that Auto classes find it; what it reads is an `UltraFastBertConfig`."""

    model_type = CRAMMED

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return UltraFastBertConfig.from_dict(translate_config(config_dict), **kwargs)
