"""What follows from the share of the budget that is used up: the learning rate and the batch; and that share."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

from fastff.hf.pretrain.budget import BudgetSettings


def lr_factor(config: BudgetSettings, share: float) -> float:
    """The learning rate in parts of its highest, once `share` in [0, 1] of the budget is used up."""
    share, height = config.stage(share)
    if config.schedule == "p2":
        return height * (0.25 + share if share < 0.75 else 4 * (1 - share))
    if share < config.warmup:
        return height * share / config.warmup
    return height * 0.5 * (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup)))


def step_batch(config: BudgetSettings, share: float, unit: int) -> int:
    """The sequences of an optimiser step at `share` of the budget: a multiple of `unit`, the nearest to the ramp."""
    ramp = 1.0 if share >= config.ramp_until else share / config.ramp_until
    wanted = config.start_batch + ramp * (config.end_batch - config.start_batch)
    return unit * max(1, round(wanted / unit))


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint. All processes have the same.

    Attributes:
        config: of the run, whose budget it is.
        unit: sequences that all processes take at once.
        step, sequences: done.
        seconds: of the steps done, in whichever process.
        warned: of a collapse.
    """

    config: BudgetSettings
    unit: int
    step: int = 0
    sequences: int = 0
    seconds: float = 0.0
    warned: bool = False
    batch: int = field(default=0, init=False)  # sequences of the step that is running, or was last
    _began: float = field(default=0.0, init=False)

    @property
    def tokens(self) -> int:
        return self.sequences * self.config.length

    @property
    def share(self) -> float:
        """Of the budget, in [0, 1]."""
        if self.config.tokens is not None:
            return min(1.0, self.tokens / self.config.tokens)
        assert self.config.minutes is not None
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def begin_step(self) -> int:
        """Start the clock; returns the sequences of the step. The last one is smaller, to end at the budget."""
        self._began = time.perf_counter()
        self.batch = step_batch(self.config, self.share, self.unit)
        if self.config.tokens is not None:
            left = math.ceil(self.config.tokens / self.config.length) - self.sequences
            self.batch = min(self.batch, self.unit * math.ceil(left / self.unit))
        return self.batch

    def step_seconds(self) -> float:
        """Since `begin_step`."""
        return time.perf_counter() - self._began

    def end_step(self, seconds: float) -> None:
        """Count the step, which took `seconds`."""
        self.step += 1
        self.sequences += self.batch
        self.seconds += seconds

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("unit", "step", "sequences", "seconds", "warned")}
