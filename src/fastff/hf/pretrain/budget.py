"""The settings that all training of language models shares: data, budget, batches, AdamW, precision, records."""

from dataclasses import dataclass

from fastff.runs.options import Settings, setting

SCHEDULES = ("p2", "cosine")
PRECISIONS = ("no", "bf16", "fp16")
BALANCE = 0.01  # weight of the loss
BALANCED = ("tree", "moe", "peer")  # layers that need it; the papers' own trees have none
GROWTH, GROWTH_TOKENS = 0.4, 1_600_000  # share of the budget, and no more than so many tokens


@dataclass(frozen=True)
class BudgetSettings(Settings):
    """Settings of a run that ends with a budget of tokens or minutes."""

    feedforward: str = setting("", "Layer, NAME:OPTION=VALUE,....")
    data: str = setting("", "A hub id, or a local folder, .parquet, .csv, .json, .jsonl or .txt file.")
    text_column: str | None = setting(None, "Column of the text; found if not given.")
    length: int = setting(128, "Tokens a sequence.")
    validation: int = setting(2000, "Sequences of the validation data to evaluate on, at most.")
    tokens: int | None = setting(None, "Budget: tokens to train on. Either this or minutes.")
    minutes: float | None = setting(None, "Budget: minutes of training steps; evaluations and checkpoints come on top.")
    batch_size: int = setting(32, "Sequences that a process takes at once.")
    start_batch: int = setting(128, "Sequences of the first optimiser step (made a multiple of what is taken at once).")
    end_batch: int = setting(128, "Sequences of a step once the ramp is over; P2: 8192.")
    ramp_until: float = setting(0.6, "Share of the budget over which the batch grows.")
    lr: float = setting(1e-3, "Highest learning rate.")
    schedule: str = setting("p2", "p2 (25 to 100 % until 3/4 of the budget, then to 0) or cosine (to 0).")
    warmup: float = setting(0.02, "Cosine: share of the budget over which the learning rate rises from 0.")
    weight_decay: float = setting(0.01, "Weight decay, of matrices.")
    beta1: float = setting(0.9, "AdamW.")
    beta2: float = setting(0.98, "AdamW.")
    epsilon: float = setting(1e-12, "AdamW.")
    clip: float = setting(0.5, "Largest gradient norm.")
    balance: float | None = setting(
        None,
        "Weight of the balance loss of trees, and of the importance and load losses of MoEs; if not given, 0.01 for "
        "layers 'tree', 'moe' and 'peer' and 0 for others.",
    )
    grow: float | None = setting(
        None,
        "Share of the budget in which new layers 'tree' grow out of dense layers; 0: none; if not given, 0.4, but not "
        "more than 1.6 million tokens.",
    )
    precision: str = setting("no", "Mixed precision: no, bf16 or fp16.")
    seed: int = setting(0, "Of initialisation, order, masks and noise.")
    logs: int = setting(100, "Records of the loss over the run.")
    evaluations: int = setting(10, "Evaluations over the run.")
    checkpoints: int = setting(10, "Checkpoints over the run; the newest two are kept.")

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        super().__post_init__()
        self.check_choice("schedule", SCHEDULES)
        self.check_choice("precision", PRECISIONS)
        if not self.data:
            raise ValueError("data must be named, got ''")
        if (self.tokens is None) == (self.minutes is None):
            raise ValueError(f"one of tokens and minutes must be given, got {self.tokens} and {self.minutes}")
        self.check_counts("length", "validation", "tokens", "batch_size", "start_batch", "end_batch")
        self.check_counts("logs", "evaluations", "checkpoints")
        self.check_positive("minutes", "lr", "epsilon", "clip")
        self.check_weights("weight_decay", "balance", "seed")
        self.check_shares("ramp_until", "warmup", "grow", "beta1", "beta2")
        if self.end_batch < self.start_batch:
            raise ValueError(f"end_batch must be at least start_batch = {self.start_batch}, got {self.end_batch}")

    def stage(self, share: float) -> tuple[float, float]:
        """Where the schedule of the learning rate is once `share` of the budget is used up, and in parts of what it is.

        A run of several stages starts it anew in each.
        """
        return share, 1.0

    @property
    def balance_weight(self) -> float:
        """`balance`, or if it is not given what the layer needs."""
        if self.balance is not None:
            return self.balance
        return BALANCE if self.feedforward.partition(":")[0] in BALANCED else 0.0

    @property
    def growth(self) -> float:
        """`grow`, or if it is not given what was best (docs/concepts/growth.md)."""
        return usual_growth(self.tokens) if self.grow is None else self.grow


def usual_growth(tokens: int | None) -> float:
    """Share of a budget of so many tokens, or of unknown length, in which trees grow unless another is asked for."""
    return GROWTH if tokens is None else min(GROWTH, GROWTH_TOKENS / tokens)
