"""Whether what was exported computes what the model computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastff.export.subject import EXAMPLE, Subject

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-7}
FEW = 0.01  # of rows: a decision whose logit is almost 0 may fall to the other side, and a row is then another one


class MismatchError(ValueError):
    """The exported model computes something else."""


@torch.no_grad()
def largest_difference(run: Callable[[Sequence[Tensor]], Tensor], subject: Subject) -> float:
    """Of the outputs, on the example and on other batches, one sample alone among them.

    Args:
        run: the exported model.
        subject: what it was made from.

    Returns:
        The largest difference, divided by the largest output, among rows where decisions agree.

    Raises:
        MismatchError: more than 1 % of the rows differ by more than rounding.
    """
    largest = 0.0
    for batch in (EXAMPLE, 1, 2 * EXAMPLE + 1):
        inputs = subject.resized(batch)
        expected, found = subject.model(*inputs), run(inputs)
        if found.shape != expected.shape:
            raise MismatchError(f"the exported model gives {tuple(found.shape)}, not {tuple(expected.shape)}")
        allowed = TOLERANCE[expected.dtype]
        rows = (found.double() - expected.double()).abs().flatten(0, -2).amax(-1) / expected.double().abs().max()
        close = rows <= allowed
        if (~close).sum() > FEW * close.numel():
            raise MismatchError(
                f"the exported model must agree to {allowed:g} with a batch of {batch}, it differs by {rows.max():g}"
            )
        largest = max(largest, rows[close].max().item())
    return largest
