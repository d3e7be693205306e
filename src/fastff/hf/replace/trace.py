"""In which order a module runs its children: what its structure alone does not say."""

import torch
from torch import Tensor, nn
from torch.func import functional_call


def trace(module: nn.Module, features: int, dtype: torch.dtype) -> list[nn.Module]:
    """The children in the order in which `module` runs them on one token, without computing anything.

    Returns:
        Empty unless `module` is a function of one tensor (1, 1, features) that goes straight into the first child and
        whose result is straight that of the last.
    """
    calls: list[nn.Module] = []
    ends: list[Tensor] = []

    def note(child: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(child)
        ends.extend((inputs[0], output))

    hooks = [child.register_forward_hook(note) for child in module.children()]
    x = torch.empty(1, 1, features, dtype=dtype, device="meta")
    try:
        with torch.no_grad():
            weights = {name: torch.empty_like(p, device="meta") for name, p in module.named_parameters()}
            y = functional_call(module, weights, (x,))
    except Exception:  # whatever a forward that wants something else may raise
        return []
    finally:
        for hook in hooks:
            hook.remove()
    return calls if ends and ends[0] is x and ends[-1] is y else []
