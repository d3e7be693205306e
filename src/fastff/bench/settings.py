"""What a benchmark is run with."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastff.nn.layer import DEEPEST, whole_number


@dataclass(frozen=True)
class Settings:
    """The shape that is measured, and how.

    Attributes:
        in_features, out_features: of every layer; one size in models.
        depth: of `UltraFFF`; its training width is that of the dense layer, the other trees have its executed width.
        trees: of `UltraFFF` and `TreeFeedForward`.
        tokens: token counts, in place of the suite's own; the suites `width` and `blocks` take the last. Of `models`
            and `generate` they make batches of sequences of 128 tokens, or 64 new ones; fewer are one shorter sequence.
        threads: of PyTorch and of the compiled kernels, which share a pool.
        cold: measure with flushed caches too.
        rounds: samples of each measurement, unless the budget is spent before.
        budget: seconds that a measurement may take. At least three samples are taken of what is measured at all; what
            takes longer than this for a single call is left out.
        max_width: largest training width of the suite `width`.
        max_blocks: most leaves or experts of the suite `blocks`.
        layers: of the models in the suites `models` and `generate`, which have numbers of their own.
        given: the layers of the suites `given` and `generate`, each as `fastff.nn.parse_layer` reads it; of `given`
            with @ and a precision behind it if that is not float32.
        losses: file of the suite `equal-loss`, as examples/compare_decoders.py writes it.
        seed: of inputs and weights.
        device: "cpu", or a GPU ("cuda", "xpu"), whose kernels are waited for.
    """

    in_features: int = 768
    out_features: int = 768
    depth: int = 11
    trees: int = 1
    tokens: tuple[int, ...] | None = None
    threads: int = 1
    cold: bool = False
    rounds: int = 20
    budget: float = 8.0
    max_width: int = 2**16
    max_blocks: int = 2**12
    layers: int | None = None
    given: tuple[str, ...] = ()
    losses: str | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features", "trees", "threads"):
            whole_number(name, getattr(self, name), 1)
        whole_number("depth", self.depth, 0, DEEPEST)
        whole_number("rounds", self.rounds, 3)
        whole_number("max_width", self.max_width, 64)
        whole_number("max_blocks", self.max_blocks, 2)
        if self.layers is not None:
            whole_number("layers", self.layers, 1)
        if len(set(self.given)) < len(self.given):
            raise ValueError(f"layers must differ, got {', '.join(self.given)}")
        if not self.budget > 0:
            raise ValueError(f"budget must be above 0 seconds, got {self.budget}")
        if self.tokens is not None:
            if not self.tokens:
                raise ValueError("tokens must name at least one count")
            for count in self.tokens:
                whole_number("tokens", count, 1)

        accelerator = torch.accelerator.current_accelerator()
        if self.device != "cpu" and (accelerator is None or self.device != accelerator.type):
            raise ValueError(
                f"device must be cpu or {accelerator or 'a GPU, of which none is here'}, got {self.device!r}"
            )
        if self.cold and self.device != "cpu":
            raise ValueError("cold is for the caches of a CPU")

    @property
    def width(self) -> int:
        """Training width of the dense layer and of `UltraFFF`."""
        return self.trees * (2 ** (self.depth + 1) - 1)

    @property
    def executed(self) -> int:
        """Neurons that a token runs in the trees."""
        return self.trees * (self.depth + 1)

    def to_json(self) -> dict[str, Any]:
        """As it is read back from JSON, which has lists for tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
