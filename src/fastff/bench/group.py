"""What is measured side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fastff.bench.candidate import Candidate
from fastff.bench.inputs import Rotation
from fastff.bench.passes import is_training
from fastff.bench.settings import Settings


@dataclass(frozen=True)
class Group:
    """Candidates that take turns.

    Attributes:
        kind: what a call is, in words: one of `fastff.bench.passes`, or another inference.
        tokens: of each call.
        candidates: one of them is the base of the ratios.
        inputs: of a seed; None: random vectors of the settings' size.
        check: takes the place of `fastff.bench.check.check_output`.
        budget: seconds for the samples of one candidate, where the settings allow more.
    """

    kind: str
    tokens: int
    candidates: Sequence[Candidate]
    inputs: Callable[[int], Rotation] | None = None
    check: Callable[..., None] | None = None
    budget: float = math.inf

    def rotation(self, s: Settings, dtype: torch.dtype) -> Rotation:
        """The inputs of the calls."""
        if self.inputs is not None:
            return self.inputs(s.seed + 1)
        gradient_features = s.out_features if is_training(self.kind) else None
        return Rotation(self.tokens, s.in_features, gradient_features=gradient_features, dtype=dtype, seed=s.seed + 1)
