"""Features less their mean, by their deviation, over the tokens of the last training steps."""

from typing import Any

import torch
from torch import Tensor

from fastff.nn.float_buffers import FloatBuffers

MOMENTUM = 0.2  # share of the newest batch
EPSILON = 1e-5


class Standardise(FloatBuffers):
    """(x - mean) / sqrt(variance + 1e-5), (T, features) -> (T, features), with running statistics of x.

    The same function in training and inference, unlike batch normalisation (Ioffe & Szegedy 2015), which uses those of
    the batch: a token's output depends on the tokens of its batch only through the running statistics, which have no
    gradient. A training forward first takes its batch in, once: the recomputed forward of gradient checkpointing finds
    the same statistics. What is no number or infinite is left out.

    Args:
        features: R.
        alike: whether all features are divided by one deviation, the root of their mean variance. A feature that is
            nearly always the same, as the border of an image, is not blown up then.
        device: of the buffers, which are float32 whatever the model is brought to.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor  # that were taken in, so that the first ones count alike
    newest: Tensor  # mean of the newest batch, by which the same batch is known

    def __init__(self, features: int, *, alike: bool = False, device: Any = None) -> None:
        super().__init__()
        self.alike = alike
        for name in ("mean", "variance", "newest"):
            self.register_buffer(name, torch.empty(features, device=device, dtype=torch.float32))
        self.register_buffer("batches", torch.empty((), device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all batches: the identity, but for 1e-5."""
        self.mean.zero_()
        self.variance.fill_(1)
        self.newest.fill_(torch.inf)
        self.batches.zero_()

    def forward(self, x_TR: Tensor) -> Tensor:
        if self.training and x_TR.shape[0]:
            self._take_in(x_TR.detach().float())
        scale_R, shift_R = self.scale_and_shift()
        return (x_TR * scale_R + shift_R).to(x_TR.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Of the function x * scale + shift, (R,) each."""
        variance_R = self.variance.mean().expand_as(self.variance) if self.alike else self.variance
        scale_R = (variance_R + EPSILON).rsqrt()
        return scale_R, -self.mean * scale_R

    @torch.no_grad()
    def _take_in(self, x_TR: Tensor) -> None:
        variance_R, mean_R = torch.var_mean(x_TR, 0, correction=0)
        new = (mean_R != self.newest).any() & (mean_R + variance_R).isfinite().all()
        self.newest.copy_(torch.where(new, mean_R, self.newest))
        self.batches.add_(new)
        share = (1 / self.batches.clamp(min=1)).clamp(min=MOMENTUM)
        step_R = torch.where(new, mean_R - self.mean, 0)
        change_R = torch.where(new, variance_R - self.variance, 0)
        self.mean.add_(share * step_R)
        # of the mixture of what was and the batch, so that batches of one token have a variance too
        self.variance.add_(share * (change_R + (1 - share) * step_R.square()))
