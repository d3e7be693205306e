"""The settings of a distillation: everything that its result depends on."""

from dataclasses import dataclass

from fastff.hf.check_layer import check_layer
from fastff.hf.pretrain.budget import BudgetSettings
from fastff.nn import parse_layer
from fastff.runs.options import setting

OBJECTIVES = ("", "causal", "masked", "embedding")


@dataclass(frozen=True)
class DistilConfig(BudgetSettings):
    """Settings of `fastff.hf.distillation`; each field's meaning stands beside it."""

    model: str = setting("", "The pretrained model: a folder or hub id.")
    feedforward: str = setting(
        "",
        "Layer in place of its feedforward layers, NAME:OPTION=VALUE,...; '' or tree: 16 leaves of an eighth each.",
    )
    modules: str = setting("", "Which ones: patterns of names, separated by commas; '': all.")
    objective: str = setting("", "What to keep: causal or masked (predictions), embedding (mean of the last states).")
    layerwise: float = setting(0.5, "Share of the budget in which each layer learns alone; then the whole model does.")
    neurons: bool = setting(True, "Start from the pretrained neurons that matter most; false: from random weights.")
    whole: float = setting(0.3, "Second stage: highest learning rate, in parts of lr.")
    others: float = setting(
        0.1, "Learning rate of all other weights in the second stage, in parts of lr; 0: they stay."
    )
    mask_share: float = setting(0.15, "Masked: share of the tokens that are to be predicted.")

    length: int = setting(128, "Tokens a sequence.")
    start_batch: int = setting(32, "Sequences of the first optimiser step (made a multiple of what is taken at once).")
    end_batch: int = setting(32, "Sequences of a step once the ramp is over.")
    lr: float = setting(1e-3, "Highest learning rate.")
    schedule: str = setting("cosine", "cosine (to 0, in both stages) or p2, see fastff pretrain.")
    balance: float | None = setting(
        0.01, "Weight of the balance loss of trees, and of the importance and load losses of MoEs."
    )
    grow: float | None = setting(
        0.2, "Share of the budget in which new layers 'tree' grow out of dense layers; 0: none."
    )
    clip: float = setting(1.0, "Largest gradient norm.")

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        super().__post_init__()
        self.check_choice("objective", OBJECTIVES)
        if not self.model:
            raise ValueError("model must be named, got ''")
        if self.feedforward:
            check_layer(self.feedforward)
            if self.neurons and parse_layer(self.feedforward)[1].get("standardise"):
                given = f"neurons must be false, as pretrained ones see plain features; got {self.feedforward!r}"
                raise ValueError(f"feedforward must not standardise, or {given}")
        if not 0 <= self.layerwise <= 1:
            raise ValueError(f"layerwise must be in [0, 1], got {self.layerwise}")
        self.check_weights("others")
        self.check_positive("mask_share", "whole")
        if self.mask_share > 1:
            raise ValueError(f"mask_share must be at most 1, got {self.mask_share}")

    @property
    def patterns(self) -> list[str] | None:
        """`modules` as a list, None for all."""
        return [pattern for pattern in self.modules.split(",") if pattern] or None

    def stage(self, share: float) -> tuple[float, float]:
        """The learning rate rises and falls once in each stage."""
        if share < self.layerwise:
            return share / self.layerwise, 1.0
        return 1.0 if self.layerwise == 1 else (share - self.layerwise) / (1 - self.layerwise), self.whole
