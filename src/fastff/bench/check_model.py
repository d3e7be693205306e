"""No speed of a model without the right result: its layers one by one, on what reaches them, and the whole output."""

from statistics import median

from torch import Tensor, nn

from fastff.bench.candidate import Candidate
from fastff.bench.check import DisagreementError, check_output
from fastff.nn import FeedForwardLayer
from fastff.ops import use_backend

TOKENS, LENGTH = 64, 16  # compared, in sequences of so many; then one of a single token, as in generation
TOLERANCE = 1e-4  # of the norm, for most sequences: one decision within rounding of zero changes a whole one


def check_model(candidate: Candidate, model: nn.Module, ids: Tensor) -> None:
    """Compare each feedforward layer of `model` with its definition, and `model` with itself on the reference backend.

    The latter in float32 alone. In bfloat16 some decisions fall otherwise whatever computes them, in int8 some bytes,
    and later layers pass that on to all tokens; there the layers, each on the same input, tell what the whole cannot.

    Args:
        candidate: gives label and dtype.
        model: makes a tensor and more of ids (B, S).
        ids: any shape.

    Raises:
        DisagreementError: they differ, or something is not finite.
    """
    ids = ids.flatten()[:TOKENS]
    parts = [part.unsqueeze(0) for part in (*ids.split(LENGTH), ids[:1])]
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {
        layer: [] for layer in model.modules() if isinstance(layer, FeedForwardLayer)
    }
    hooks = [layer.register_forward_hook(lambda f, x, y: calls[f].append((x[0], y))) for layer in calls]
    try:
        found = [model(part)[0] for part in parts]
    finally:
        for hook in hooks:
            hook.remove()
    if not all(y.isfinite().all() for y in found):
        raise DisagreementError(f"{candidate.label}: the model's output is not finite")
    for layer, pairs in calls.items():
        if not pairs:  # the definition of what runs in its place
            continue
        xs, ys = ([t.flatten(0, -2) for t in tensors] for tensors in zip(*pairs, strict=True))
        check_output(candidate, layer, xs, ys)
    if candidate.dtype_name != "float32":
        return
    with use_backend("reference"):
        error = median(_relative(y, model(part)[0]) for part, y in zip(parts, found, strict=True))
    if not error <= TOLERANCE:
        raise DisagreementError(
            f"{candidate.label}: the model's output differs from that on the reference backend by {error:.2g} of its "
            f"norm, at most {TOLERANCE:g} may be rounding"
        )


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
