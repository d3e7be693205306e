"""The settings of a fine-tuning: everything that its result depends on but the models."""

from dataclasses import dataclass

from fastff.runs.options import Settings, setting


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Settings of `fastff.hf.finetune.finetune`, by default the recipe of P2; each field's meaning stands beside it."""

    data: str = setting("", "A hub id, or a local folder, .parquet, .csv, .json or .jsonl file.")
    text_column: str | None = setting(None, "Column of the text, or two with a comma between; found if not given.")
    label_column: str | None = setting(None, "Column of the class; found if not given.")
    limit: int | None = setting(None, "Training samples at most, a random choice that all runs share.")
    length: int = setting(128, "Tokens a sample, at most; the rest is cut off.")
    epochs: int = setting(5, "Passes over the training data; what counts is the model after the last.")
    batch_size: int = setting(16, "Samples of a step.")
    lr: float = setting(4e-5, "Highest learning rate.")
    warmup: float = setting(0.1, "Share of the steps over which the learning rate rises from 0; then it falls to 0.")
    weight_decay: float = setting(0.0, "Weight decay, of matrices.")
    beta1: float = setting(0.9, "AdamW.")
    beta2: float = setting(0.98, "AdamW.")
    epsilon: float = setting(1e-6, "AdamW.")
    clip: float = setting(1.0, "Largest gradient norm.")
    dropout: float = setting(0.1, "Of hidden values and of the classifier, whatever the models were trained with.")
    balance: float = setting(0.0, "Weight of the balance loss of trees, and of the importance and load losses of MoEs.")
    seeds: int = setting(3, "Runs of every model: of the classifier's initialisation, the order and the dropout.")

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        super().__post_init__()
        if not self.data:
            raise ValueError("data must be named, got ''")
        self.check_counts("limit", "length", "epochs", "batch_size", "seeds")
        self.check_positive("lr", "epsilon", "clip")
        self.check_weights("weight_decay", "balance")
        self.check_shares("warmup", "beta1", "beta2", "dropout")
        if self.text_column is not None and not 1 <= len(self.text_columns) <= 2:
            raise ValueError(f"text_column must name one or two columns, got {self.text_column!r}")

    @property
    def text_columns(self) -> list[str]:
        """Those named; none: to be found."""
        return list(filter(None, (self.text_column or "").split(",")))
