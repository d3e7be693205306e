"""The settings of a training run: everything that its result depends on."""

from dataclasses import dataclass

from fastff.nn import TreeFeedForward, parse_layer
from fastff.runs.options import Settings, setting
from fastff.train.models import MODELS

OPTIMIZERS = ("adamw", "sgd", "blockwise-adam", "blockwise-sgd")
SCHEDULES = ("cosine", "plateau", "constant")
HARDENING_SCHEDULES = ("constant", "warmup", "anneal")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of `fastff.train.train`; each field's meaning stands beside it."""

    data: str = setting("digits", "'digits' (built in), a hub id, or a local folder, parquet, CSV or JSON file.")
    input_column: str | None = setting(None, "Column of the images or vectors; found by name if not given.")
    label_column: str | None = setting(None, "Column of the classes; found by name if not given.")
    validation: int | None = setting(None, "Samples taken off the end of the training data; by default 10 %, <= 5000.")
    limit: int | None = setting(None, "Training samples at most, the first that come.")
    layer: str = setting("tree:depth=4,leaf_width=8", "NAME:OPTION=VALUE,...; names: dense, moe, fff, ultra, tree.")
    model: str = setting("mlp", "'mlp': the layer alone on flattened input; 'vit': P1's vision transformer.")
    epochs: int = setting(20, "Epochs at most.")
    batch_size: int = setting(128, "Samples a step, over all processes.")
    accumulation: int = setting(1, "Parts that a step's samples are taken in, one after the other.")
    optimizer: str = setting("adamw", "adamw, sgd, blockwise-adam or blockwise-sgd (for shrinking batches).")
    lr: float = setting(2e-3, "Learning rate.")
    weight_decay: float = setting(0.1, "Weight decay.")
    momentum: float = setting(0.0, "Momentum of SGD.")
    block_batch: int = setting(32, "Blockwise: samples that a node, leaf or expert must see before it steps.")
    schedule: str = setting("cosine", "Of the learning rate: cosine (to 0), plateau (halved), constant.")
    plateau_epochs: int = setting(10, "Plateau: epochs without a better validation accuracy before halving.")
    warmup: float = setting(0.02, "Share of all steps in which the learning rate rises (cosine and constant).")
    clip: float | None = setting(None, "Largest gradient norm.")
    hardening: float = setting(0.0, "Weight of the hardening loss, the mean entropy of the decisions.")
    hardening_schedule: str = setting("constant", "constant, warmup (from 0 up) or anneal (down to 0).")
    balance: float = setting(0.1, "Weight of the balance loss of trees.")
    importance: float = setting(0.0, "Weight of the importance loss of an MoE.")
    load: float = setting(0.0, "Weight of the load loss of an MoE.")
    initialise: bool = setting(False, "Set the tree decisions from the training data first.")
    grow: float = setting(0.4, "Share of the steps in which a layer 'tree' grows out of a dense layer; 0: none.")
    input_dropout: float = setting(0.0, "Probability with which an input value is left out in training.")
    shift: int = setting(0, "Pixels that an image is moved by at most, at random, in training, in each direction.")
    flip: bool = setting(False, "Flip half of the images left to right in training.")
    patience: int | None = setting(None, "Epochs without a better validation accuracy after which training ends.")
    precision: str = setting("no", "Mixed precision: no, bf16 or fp16.")
    seed: int = setting(0, "Of initialisation, order and noise.")

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError that names the setting and its value."""
        super().__post_init__()
        parse_layer(self.layer)
        self.check_choice("model", MODELS)
        self.check_choice("optimizer", OPTIMIZERS)
        self.check_choice("schedule", SCHEDULES)
        self.check_choice("hardening_schedule", HARDENING_SCHEDULES)
        self.check_choice("precision", PRECISIONS)
        self.check_counts("epochs", "batch_size", "accumulation", "block_batch", "plateau_epochs", "patience", "limit")
        self.check_weights("lr", "weight_decay", "hardening", "balance", "importance", "load", "shift", "seed")
        self.check_shares("momentum", "warmup", "grow", "input_dropout")
        if self.grow and parse_layer(self.layer)[0] is TreeFeedForward and self.optimizer.startswith("blockwise"):
            raise ValueError(f"grow must be 0 with optimizer {self.optimizer!r}, got {self.grow}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if self.accumulation > self.batch_size:
            raise ValueError(f"accumulation must be at most batch_size = {self.batch_size}, got {self.accumulation}")
