"""Random inputs in rotation, so that no path stays in a cache because one batch is repeated."""

import torch
from torch import Tensor

AT_LEAST = 4  # batches
MANY_TOKENS = 256  # all batches together have at least as many tokens,
MANY_BATCHES = 128  # or are as many batches


class Rotation:
    """Distinct random batches, handed out in turn.

    Args:
        tokens, in_features: shape of a batch (T, I).
        gradient_features: if given, each batch has a gradient of the output (T, O) beside it, and its input asks for
            a gradient.
        dtype: of all.
        seed: of the numbers, which are normally distributed.
    """

    def __init__(
        self, tokens: int, in_features: int, *, gradient_features: int | None = None, dtype: torch.dtype, seed: int
    ) -> None:
        generator, device = torch.Generator().manual_seed(seed), torch.get_default_device()
        self.batches: list[tuple[Tensor, ...]] = []
        for _ in range(batch_count(tokens)):
            x_TI = torch.randn(tokens, in_features, generator=generator, device="cpu").to(device, dtype)
            if gradient_features is None:
                self.batches.append((x_TI,))
            else:
                g_TO = torch.randn(tokens, gradient_features, generator=generator, device="cpu").to(device, dtype)
                self.batches.append((x_TI.requires_grad_(), g_TO))

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.batches[0][0].device

    def __len__(self) -> int:
        return len(self.batches)

    def take(self, start: int, count: int) -> list[tuple[Tensor, ...]]:
        """`count` batches in turn, from position `start` on, which may run past the end."""
        return [self.batches[i % len(self.batches)] for i in range(start, start + count)]


class Sequences(Rotation):
    """Distinct random batches of token ids (B, S); 0, often the padding, is none of them."""

    def __init__(self, batch: int, length: int, *, vocabulary: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = batch_count(batch * length)
        self.batches = [(torch.randint(1, vocabulary, (batch, length), generator=generator),) for _ in range(count)]


def batch_count(tokens: int) -> int:
    """How many batches of so many tokens are in rotation."""
    return max(AT_LEAST, min(MANY_BATCHES, -(-MANY_TOKENS // tokens)))
