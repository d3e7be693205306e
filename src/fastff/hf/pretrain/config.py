"""The settings of a pretraining run: everything that its result depends on."""

from dataclasses import dataclass

from fastff.hf.pretrain.budget import BudgetSettings
from fastff.nn import parse_layer
from fastff.runs.options import setting

OBJECTIVES = ("masked", "causal")
ULTRA_FAST_BERT = "ultrafastbert"
NO_LAYER = "none"


@dataclass(frozen=True)
class PretrainConfig(BudgetSettings):
    """Settings of `fastff.hf.pretrain.pretrain`; each field's meaning stands beside it."""

    objective: str = setting("masked", "masked or causal language model.")
    model: str = setting(
        ULTRA_FAST_BERT, "A Transformers model type (ultrafastbert, llama, gpt2...), folder or hub id."
    )
    shape: str = setting("", "Values for the model's configuration: hidden_size=128,num_hidden_layers=3,...")
    feedforward: str = setting(
        "",
        "Layer, NAME:OPTION=VALUE,..., or tree or peer alone, with the options that were best in small language "
        "models; 'none' (ultrafastbert); '': what the model has.",
    )
    from_weights: bool = setting(False, "Go on from the weights of the folder or hub id.")
    tokenizer: str = setting("", "Folder or hub id; '': the weights' own, or else trained on the data.")
    vocab_size: int = setting(8192, "Tokens of a trained tokenizer, at most.")
    initialise: bool = setting(False, "Set the decisions of new trees from the training data first.")
    mask_share: float = setting(0.25, "Masked: share of the tokens that are to be predicted.")
    gradient_checkpointing: bool = setting(False, "Compute activations anew in backward, to save memory.")

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        super().__post_init__()
        self.check_choice("objective", OBJECTIVES)
        if not self.model:
            raise ValueError("model must be named, got ''")
        if self.feedforward == NO_LAYER:
            if self.model != ULTRA_FAST_BERT:
                raise ValueError(f"feedforward {NO_LAYER!r} is for the model {ULTRA_FAST_BERT}, got {self.model!r}")
        elif self.feedforward:
            parse_layer(self.feedforward)
        if self.from_weights and self.shape:
            raise ValueError(f"shape must be '' with from_weights, which has its own; got {self.shape!r}")
        self.check_counts("vocab_size")
        self.check_positive("mask_share")
        if self.mask_share > 1:
            raise ValueError(f"mask_share must be at most 1, got {self.mask_share}")

    @property
    def new_layers(self) -> bool:
        """Whether the feedforward layers start untrained."""
        return bool(self.feedforward) or not self.from_weights
