"""The auxiliary losses of a whole model in one call."""

import torch
from torch import Tensor, nn

from fastff.nn.routed import RoutedLayer


def auxiliary_loss(
    model: nn.Module, *, hardening: float = 0.0, balance: float = 0.0, importance: float = 0.0, load: float = 0.0
) -> Tensor:
    """Weighted sum of the auxiliary losses of every routed layer in `model`, read off its last forward.

    Args:
        model: any module; call it on a batch first, then add this to the task's loss before `backward`. (Checkpointing
            must be non-reentrant: the reentrant one runs the forward without a graph.)
        hardening: weight of the mean entropy of the node decisions (P1).
        balance: weight of leaves * sum_k f_k P_k (P3), 1 where all leaves are used alike; in hard trees, which do not
            evaluate every node, the mean over levels of the same over that level's nodes, from the paths alone.
        importance, load: weights of the squared coefficients of variation of the experts' gates and of their smooth
            token counts (Shazeer et al., appendix A).

    Returns:
        A float32 scalar, summed over layers; 0 where nothing applies.

    Raises:
        ValueError: a weight is negative or not a number.
    """
    weights = {"hardening": hardening, "balance": balance, "importance": importance, "load": load}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise ValueError(f"{name} must be a number of at least 0, got {weight}")
    first = next(model.parameters(), None)
    total = torch.zeros((), device=None if first is None else first.device)
    weights = {name: weight for name, weight in weights.items() if weight}
    if not weights:
        return total
    for module in model.modules():
        if isinstance(module, RoutedLayer) and module.has_routing:
            for name, loss in module.routing.losses(weights).items():
                total = total + weights[name] * loss.to(total.device)
    return total
