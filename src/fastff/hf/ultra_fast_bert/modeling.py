"""UltraFastBERT (P2): crammed BERT, a pre-norm encoder without biases, around any feedforward layer of `fastff.nn`."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from fastff.hf.model_card import write_model_card
from fastff.hf.ultra_fast_bert import crammed
from fastff.hf.ultra_fast_bert.configuration import UltraFastBertConfig
from fastff.nn import FeedForwardLayer, TreeFeedForward, build_layer, parse_layer, quantize
from fastff.nn.int8_layer import Int8Layer
from fastff.nn.layer import is_bias

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def sinusoids(positions: int, features: int) -> Tensor:
    """(positions, features) float32: sine and cosine in turn, of wavelengths from 2 pi to 10000 * 2 pi."""
    rate = torch.exp(torch.arange(0, features, 2) * (-math.log(10000.0) / features))
    angle = torch.arange(positions).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class UltraFastBertEmbeddings(nn.Module):
    """Word embedding plus scaled sinusoids, a norm, dropout: (B, S) ids -> (B, S, hidden)."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_scale = nn.Parameter(torch.tensor([config.hidden_size**-0.5]))
        positions = sinusoids(config.max_position_embeddings, config.hidden_size)
        self.sinusoids = nn.Buffer(positions, persistent=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, position_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        positions = self.sinusoids[: inputs_embeds.shape[1]] if position_ids is None else self.sinusoids[position_ids]
        return self.dropout(self.norm(inputs_embeds + self.position_scale * positions))


class UltraFastBertAttention(nn.Module):
    """Self-attention, (B, S, hidden) -> (B, S, hidden); rows of query_key_value are ordered (heads, 3, head size)."""

    is_causal = False

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        shape = x.shape[:-1]
        heads = self.query_key_value(x).view(*shape, -1, 3, self.head_size)
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(-2))  # (B, heads, S, head size), no copies
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.head_size**-0.5, **kwargs
        )
        return self.dense(attended.reshape(*shape, -1)), weights


class UltraFastBertLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + feedforward(norm(x)): (B, S, hidden) -> (B, S, hidden)."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.attention = UltraFastBertAttention(config)
        self.feedforward = None
        if config.feedforward is not None:
            self.feedforward_norm = nn.LayerNorm(hidden, eps=eps)
            self.feedforward = build_layer(config.feedforward, hidden, activation=config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        attended, _ = self.attention(self.attention_norm(x), attention_mask, **kwargs)
        x = x + self.dropout(attended)
        if self.feedforward is not None:
            x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x


class UltraFastBertPreTrainedModel(PreTrainedModel):
    """What all UltraFastBERT models share: initialisation, and reading of the authors' checkpoints."""

    config_class = UltraFastBertConfig
    config: UltraFastBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["UltraFastBertLayer"]  # noqa: RUF012 (as in all of Transformers)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": UltraFastBertLayer,
        "attentions": UltraFastBertAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """normal(0, initializer_range), biases 0 (P2); what a layer starts at 0 (offsets of leaves, gates) stays so."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, UltraFastBertEmbeddings):
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)
            init.copy_(module.sinusoids, sinusoids(*module.sinusoids.shape))
        elif isinstance(module, FeedForwardLayer):
            for name, parameter in module.named_parameters(recurse=False):
                if is_bias(name) or name in module.zero_parameters:
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, mean=0.0, std=std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As of any Transformers model; also reads the authors' released format (`model_type: crammedBERT`), by folder
        or hub id, in safetensors or as a pickle of tensors. No code of theirs is needed, and none is run.

        Raises:
            OSError: there are no weights, or they are damaged.
            ValueError: the configuration or the weights are not those of an UltraFastBERT.
        """
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        name = pretrained_model_name_or_path
        if name is None or PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type") != crammed.MODEL_TYPE:
            return super().from_pretrained(name, *args, **kwargs)
        config = kwargs.pop("config", None)
        if config is None:
            config, kwargs = UltraFastBertConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in hub}
        trees = parse_layer(config.feedforward)[1].get("trees", 1)
        head_size = config.hidden_size // config.num_attention_heads
        weights = crammed.translate_weights(crammed.read_weights(name, **hub), head_size, trees)
        with torch.device("meta"):
            expected = dict(UltraFastBertForMaskedLM(config).named_parameters())  # names the tied pair once
        crammed.check_weights(weights, expected)
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of any Transformers model; writes a model card too, where the folder has none."""
        text = self.config.feedforward
        merged = any(isinstance(module, TreeFeedForward) and module.merged for module in self.modules())
        if text and merged:  # since `fastff.merge_base`
            layer, given = parse_layer(text)
            usual = inspect.signature(layer).parameters
            gone = (name for name in ("shared_base", "standardise") if given.get(name, usual[name].default))
            self.config.feedforward = text + "".join(f",{name}=false" for name in gone)
        self.config.int8 = any(isinstance(module, Int8Layer) and module.int8 is not None for module in self.modules())
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True) and not (Path(save_directory) / "README.md").exists():
            write_model_card(self, save_directory)


class UltraFastBertModel(UltraFastBertPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__(config)
        self.embeddings = UltraFastBertEmbeddings(config)
        self.layers = nn.ModuleList(UltraFastBertLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()
        if config.int8:
            quantize(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode.

        Args:
            input_ids: (B, S) int64; or
            inputs_embeds: (B, S, hidden).
            attention_mask: (B, S), 1 where a token is real, 0 where it is padding.
            token_type_ids: taken, because most tokenizers give them, and ignored: this architecture has no segments.
            position_ids: (B, S) int64; by default 0 to S - 1.

        Returns:
            last_hidden_state (B, S, hidden), after the final norm; hidden_states and attentions if asked for.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds, or a sequence too long.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]  # type: ignore[union-attr]
        if length > (longest := self.config.max_position_embeddings):
            raise ValueError(
                f"input_ids must have at most max_position_embeddings = {longest} tokens a sequence, got {length}; "
                "positions have no parameters: the configuration's max_position_embeddings can be set anew on loading"
            )
        x = self.embeddings(input_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        for layer in self.layers:
            x = layer(x, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.final_norm(x))


class UltraFastBertForMaskedLM(UltraFastBertPreTrainedModel):
    """The encoder and a decoder tied to the embedding, without bias or transform."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: UltraFastBertConfig) -> None:
        super().__init__(config)
        self.model = UltraFastBertModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.decoder = value

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
    ) -> MaskedLMOutput:
        """Predict tokens; arguments as of `UltraFastBertModel`.

        Args:
            labels: (B, S) int64, -100 where nothing is to be predicted.

        Returns:
            loss, the mean cross-entropy of the labelled positions, if labels are given; logits (B, S, vocab_size), or
            with labels and `config.sparse_prediction` (labelled positions, vocab_size).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        x = outputs.last_hidden_state
        if labels is not None and self.config.sparse_prediction:
            labelled = labels != -100
            x, labels = x[labelled], labels[labelled]
        logits = self.decoder(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
