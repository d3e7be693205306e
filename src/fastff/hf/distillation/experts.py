"""Where a mixture of experts starts: the pretrained neurons in groups that are active on the same tokens.

As MoEfication (Zhang et al. 2022) and CMoE (Pei et al., arXiv 2502.04416) partition a function without training:
neurons are clustered, in clusters of one size, by the tokens on which they are strong. A gate is fitted to how much its
expert puts out.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fastff.hf.distillation.fit import Neurons, fit_rows, values
from fastff.nn import MoE

STRONG = 0.1  # share of its neurons that a token counts as active (CMoE)
ROUNDS = 4
MOST = 4096  # tokens that clusters are made from
EVEN = 0.1  # deviation of the logits of gates, so that at first those of the chosen weigh nearly alike


def start_experts(layer: MoE, neurons: Neurons, x_TI: Tensor, y_TO: Tensor) -> None:
    """Set experts and gates of `layer` from a function's neurons and its inputs and outputs, in place."""
    E, W = layer.experts, layer.expert_width
    h_TN = values(neurons.logits(x_TI), neurons.activation, 1)
    size_TN = h_TN.abs() * neurons.w2.norm(dim=1)
    best = size_TN.square().mean(0).topk(min(E * W, size_TN.shape[1])).indices
    group_EW = [best[part] for part in clusters(size_TN[:MOST, best], E, W)]
    out_TEO = torch.stack([h_TN[:, group] @ neurons.w2[group] for group in group_EW], dim=1)
    for e, group in enumerate(group_EW):
        n = len(group)
        for p, rows in ((layer.expert_w1, neurons.w1), (layer.expert_b1, neurons.b1)):
            p[e].unflatten(0, (-1, W))[:, :n] = rows[group].transpose(0, 1)
        layer.expert_w2[e] = 0
        layer.expert_w2[e, :n] = layer.top_k * neurons.w2[group]  # gates of the chosen sum to 1
    strength_TE = (out_TEO / y_TO.std(0).clamp_min(1e-6)).norm(dim=-1)
    strength_TE = strength_TE - strength_TE.mean(1, keepdim=True)  # who is chosen depends on differences alone
    weight_IE = fit_rows(x_TI, strength_TE / strength_TE.std().clamp_min(1e-6))
    layer.gate_weight.copy_(EVEN * weight_IE.T)
    chosen = F.linear(x_TI, layer.gate_weight).topk(layer.top_k, dim=-1).indices
    kept_TO = out_TEO.gather(1, chosen.unsqueeze(-1).expand(-1, -1, out_TEO.shape[-1])).sum(1)
    layer.expert_b2.copy_((y_TO - kept_TO).mean(0).expand_as(layer.expert_b2))


def clusters(size_TN: Tensor, count: int, width: int) -> list[Tensor]:
    """`count` groups of `width` neurons at most that are strong on the same tokens: balanced k-means."""
    N = size_TN.shape[1]
    bound_T1 = size_TN.topk(max(1, int(STRONG * N)), dim=1).values[:, -1:]
    active_NT = F.normalize((size_TN >= bound_T1).float().T, dim=1)
    centre_ET = active_NT[:: max(1, N // count)][:count]
    for _ in range(ROUNDS):
        near_NE = active_NT @ centre_ET.T
        places = near_NE.repeat_interleave(width, dim=1)  # of each group
        rows, place = linear_sum_assignment(places.cpu().numpy(), maximize=True)
        groups = [torch.from_numpy(rows[place // width == e]).to(size_TN.device) for e in range(count)]
        centre_ET = F.normalize(torch.stack([active_NT[group].sum(0) for group in groups]), dim=1)
    return groups
