"""Mixtures of experts to compare with: noisy top-k (Shazeer et al. 2017), the baseline of P1; loss-free balancing."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.expert_layer import ExpertLayer
from fastff.nn.layer import one_of, probability, uniform_, whole_number
from fastff.nn.routing import ExpertRouting


class MoE(ExpertLayer):
    """Mixture of experts, of which `top_k` run, in training too.

    By default with noisy gates ("Outrageously Large Neural Networks", section 2.1, appendix A): H(x) = x gate_weight^T
    + normal() * softplus(x noise_weight^T); the top_k largest are kept, softmax over them gives the gates. No noise in
    inference. Add `importance` and `load` of `fastff.auxiliary_loss` while training (P1 uses 0.1 for both).

    With `loss_free` as in recent large models (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; Wang et al., arXiv
    2408.15664): the affinity is sigmoid(x gate_weight^T); experts are chosen by affinity plus a bias that no gradient
    reaches, and weighed by their affinities, divided by the sum of the chosen. Call `fastff.balance_experts` after
    every step: it lowers the bias of those with more tokens than the mean, and raises that of the others.

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        experts: E.
        expert_width: hidden neurons of an expert.
        top_k: experts a token, at most `experts`.
        activation: of the experts, a key of `fastff.ops.ACTIVATIONS`.
        gated: whether an expert's neuron w is activation(z_w) * z_(W + w), as in recent models (SwiGLU with "silu").
        dropout: probability in [0, 1) with which an expert's hidden neuron is left out in training.
        noise: whether noise is added to the gates in training. Without it, as in later work, gates are initialised as
            other weights are, and `load` counts tokens, so that `importance` alone balances.
        loss_free: whether a bias balances the choice; `noise` must be False with it.
        device, dtype: of the parameters.

    Parameters: gate_weight (E, in) and, with noise, noise_weight (E, in), 0 at first so that the load starts even
    (appendix A);
    expert_w1 (E, W, in), expert_b1 (E, W), if gated with 2 W in place of W, expert_w2 (E, W, out), expert_b2 (E, out),
    as the leaves of `FFF`. Buffer, with `loss_free`: choice_bias (E,), float32.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    gate_weight: nn.Parameter
    noise_weight: nn.Parameter
    expert_b2: nn.Parameter
    choice_bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        experts: int,
        expert_width: int,
        top_k: int = 2,
        activation: str = "relu",
        gated: bool = False,
        dropout: float = 0.0,
        noise: bool = True,
        loss_free: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.experts = whole_number("experts", experts, 1)
        self.expert_width = whole_number("expert_width", expert_width, 1)
        self.top_k = whole_number("top_k", top_k, 1)
        if self.top_k > self.experts:
            raise ValueError(f"top_k must be at most experts = {experts}, got {top_k}")
        self.gated = one_of("gated", gated, (True, False))
        self.dropout = probability("dropout", dropout)
        self.noise = one_of("noise", noise, (True, False))
        self.loss_free = one_of("loss_free", loss_free, (True, False))
        if self.noise and self.loss_free:
            raise ValueError("noise must be False with loss_free, got True")
        E, W, I, O = self.experts, self.expert_width, self.in_features, self.out_features
        H = 2 * W if self.gated else W
        shapes: dict[str, tuple[int, ...]] = {
            "gate_weight": (E, I),
            **({"noise_weight": (E, I)} if self.noise else {}),
            "expert_w1": (E, H, I),
            "expert_b1": (E, H),
            "expert_w2": (E, W, O),
            "expert_b2": (E, O),
        }
        bias = torch.zeros(E, device=device, dtype=torch.float32) if self.loss_free else None
        self.register_buffer("choice_bias", bias)
        self._register(shapes, device, dtype)

    @property
    def zero_parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("gate_weight", "noise_weight") if self.noise else ()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        for name in self.zero_parameters:
            nn.init.zeros_(getattr(self, name))
        if not self.noise:
            uniform_(self.gate_weight, self.in_features)
        if self.choice_bias is not None:
            self.choice_bias.zero_()
        for p, fan in (
            (self.expert_w1, self.in_features),
            (self.expert_b1, self.in_features),
            (self.expert_w2, self.expert_width),
            (self.expert_b2, self.expert_width),
        ):
            uniform_(p, fan)

    @property
    def training_width(self) -> int:
        """Neurons of all experts: experts * expert_width."""
        return self.experts * self.expert_width

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: one gate an expert, which grows linearly, and top_k * expert_width."""
        return self.experts + self.top_k * self.expert_width

    def multiply_adds(self, *, training: bool) -> int:
        """The gates, in training with those of the noise, and the chosen experts."""
        gates = self.experts * (2 if training and self.noise else 1)
        neuron = (1 + self.gated) * self.in_features + self.out_features
        return gates * self.in_features + self.top_k * self.expert_width * neuron

    def forward_tokens(
        self,
        x: Tensor,
        gate_weight: Tensor,
        expert_w1: Tensor,
        expert_b1: Tensor,
        expert_w2: Tensor,
        expert_b2: Tensor,
        noise_weight: Tensor | None = None,
    ) -> Tensor:
        clean_TE = F.linear(x, gate_weight)
        noisy_TE = clean_TE
        if self.training and noise_weight is not None:
            scale_TE = F.softplus(F.linear(x, noise_weight))
            noisy_TE = clean_TE + torch.randn_like(clean_TE) * scale_TE
        if self.choice_bias is None:
            best, chosen = noisy_TE.topk(self.top_k, dim=-1)
            gate_Tk = best.softmax(-1)
        else:
            affinity_TE = clean_TE.sigmoid()
            chosen = (affinity_TE.detach().float() + self.choice_bias).topk(self.top_k, dim=-1).indices
            best = affinity_TE.gather(1, chosen)
            gate_Tk = best / best.sum(-1, keepdim=True)
        gates_TE = torch.zeros_like(noisy_TE).scatter(1, chosen, gate_Tk)
        load_TE = gates_TE > 0
        if self.training and noise_weight is not None and self.top_k < self.experts:
            load_TE = _chance_to_be_chosen(clean_TE.float(), noisy_TE.float(), scale_TE.float(), self.top_k)
        self._remember(chosen, gates_TE.float().sum(0), load_TE.float().sum(0))
        return self.run_experts(x, chosen, gate_Tk, expert_w1, expert_b1, expert_w2, expert_b2)

    def _routing(self, chosen: Tensor, importance: Tensor, load: Tensor) -> ExpertRouting:
        return ExpertRouting(chosen, self.experts, importance, load)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, experts={self.experts}, expert_width={self.expert_width}, "
            f"top_k={self.top_k}, activation={self.activation!r}, noise={self.noise}, loss_free={self.loss_free}"
            f"{', gated=True' if self.gated else ''}"
        )


@torch.no_grad()
def balance_experts(model: nn.Module, rate: float = 0.001) -> None:
    """Move the bias of every `MoE(loss_free=True)` towards an even load of its experts, from its last forward.

    Algorithm 1 of Wang et al. (arXiv 2408.15664): bias += rate * sign(mean load - load). Call it after every step of
    the optimizer. Processes of `torch.distributed` add up their loads.

    Args:
        model: any module; without such layers nothing happens.
        rate: the step, 0.001 in the paper.

    Raises:
        ValueError: `rate` is no positive number.
        RuntimeError: a layer has not run yet.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise ValueError(f"rate must be a positive number, got {rate!r}")
    for module in model.modules():
        if isinstance(module, MoE) and module.choice_bias is not None:
            load_E = module.routing.leaf_counts[0].float()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(load_E)
            module.choice_bias += rate * torch.sign(load_E.mean() - load_E)


def _chance_to_be_chosen(clean_TE: Tensor, noisy_TE: Tensor, scale_TE: Tensor, top_k: int) -> Tensor:
    """P(x, i) of appendix A: the chance that expert i stays among the top_k if only its own noise is drawn again."""
    best = noisy_TE.topk(top_k + 1, dim=-1).values
    among = noisy_TE >= best[:, top_k - 1, None]
    threshold = torch.where(among, best[:, top_k, None], best[:, top_k - 1, None])  # kth largest of the others
    return torch.special.ndtr((clean_TE - threshold) / scale_TE.clamp_min(1e-6))
