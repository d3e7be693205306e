"""What a distillation minimises: a layer's distance from the function it replaces, or a model's from the original."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastff.hf.replace import FeedForwardFunction


class Distiller(nn.Module):
    """A student beside its teacher; the forward gives the loss, as Trainer wants it.

    In the first stage every new layer learns, from the input of the function that it replaces, that function's output.
    The inputs are those in the teacher, so layers do not wait for each other, and the rest of the student does not run.
    In the second the student's outputs and hidden states learn from the teacher's.

    The teacher is no part of this module: it is neither trained nor saved.

    Args:
        teacher: the original; put into eval mode.
        student: a copy with new layers.
        functions: those of the teacher that were replaced, by name.
        objective: "causal" or "masked": divergence of the predictions; "embedding": cosine of the mean of the last
            hidden states.

    Attributes:
        whole: whether the second stage is on.
    """

    _keys_to_ignore_on_save = None  # Trainer asks, where a checkpoint has tied weights under one name alone

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        functions: dict[str, FeedForwardFunction],
        objective: str,
    ) -> None:
        super().__init__()
        self.student, self.functions, self.objective, self.whole = student, functions, objective, False
        self.teacher: PreTrainedModel
        self.__dict__["teacher"] = teacher.eval().requires_grad_(False)
        self.register_state_dict_post_hook(_each_once)

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Teacher and student."""
        return self.teacher, self.student

    @property
    def new_parameters(self) -> set[str]:
        """Names of the parameters of the new layers."""
        places = tuple(f"student.{name}." for name in self.functions)
        return {name for name, _ in self.named_parameters() if name.startswith(places)}

    def _apply(self, fn: Any, recurse: bool = True) -> "Distiller":
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of the stage that is on, {"loss": scalar}; ids, labels and mask (B, S)."""
        mask_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask_BS}
        real_BS = mask_BS.bool()
        if not self.whole:
            return {"loss": torch.stack(list(self.missed_by_layer(inputs, real_BS).values())).mean()}
        options = {"output_hidden_states": True, "return_dict": True}
        with torch.no_grad():
            wanted = self.teacher(**inputs, **options)
        found = self.student(**inputs, **options)
        pairs = zip(found.hidden_states[1:], wanted.hidden_states[1:], strict=True)
        states = torch.stack([missed(f[real_BS], w[real_BS]) for f, w in pairs]).mean()
        if self.objective == "embedding":
            embeddings = [pooled(output.last_hidden_state, mask_BS) for output in (found, wanted)]
            return {"loss": states + 1 - cosine(*embeddings)}
        return {"loss": states + divergence(found.logits[real_BS], wanted.logits[real_BS])}

    def missed_by_layer(self, inputs: dict[str, Tensor], real_BS: Tensor) -> dict[str, Tensor]:
        """Of each new layer, by name, the share of the output's variance that it misses."""
        found = {}
        for name, (x, y) in captured(self.teacher, self.functions, inputs).items():
            x_TI, y_TO = (t.view(*real_BS.shape, -1)[real_BS] for t in (x, y))  # OPT's have (T, I) already
            found[name] = missed(self.student.get_submodule(name)(x_TI), y_TO)
        return found


def missed(found: Tensor, wanted: Tensor) -> Tensor:
    """The share of the variance over tokens that is missed, mean over features; both (T, O).

    Each feature counts by its own variance: in pretrained models a few have a hundred times that of the others.
    """
    found, wanted = found.float(), wanted.float()
    error_O = (found - wanted).square().mean(0)
    variance_O = wanted.var(0, unbiased=False)
    return (error_O / (variance_O + 1e-3 * variance_O.median()).clamp_min(1e-12)).mean()


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the teacher's predictions from the student's, nats a token; logits (T, V)."""
    return F.kl_div(
        found.float().log_softmax(-1), wanted.float().log_softmax(-1), reduction="batchmean", log_target=True
    )


def cosine(found_BI: Tensor, wanted_BI: Tensor) -> Tensor:
    """Mean cosine of the angle between two embeddings of each sequence."""
    return F.cosine_similarity(found_BI, wanted_BI, dim=-1).mean()


def pooled(states_BSI: Tensor, mask_BS: Tensor) -> Tensor:
    """The mean of the real tokens' states, (B, I)."""
    weight_BS1 = mask_BS.unsqueeze(-1).to(states_BSI.dtype)
    return (states_BSI * weight_BS1).sum(1) / weight_BS1.sum(1)


class _AllSeenError(Exception):
    """Ends a forward early, once all that is looked for is known."""


@torch.no_grad()
def captured(
    model: PreTrainedModel, functions: dict[str, FeedForwardFunction], inputs: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each function on a batch, by name; the layers after the last of them do not run."""
    entered: dict[str, Tensor] = {}
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, function in functions.items():

        def enter(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            entered[name] = given[0]

        def leave(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
            kept[name] = (entered.pop(name), output)
            if len(kept) == len(functions):
                raise _AllSeenError

        hooks.append(model.get_submodule(name).register_forward_pre_hook(enter))
        last = function.others[-1] if function.others else name
        hooks.append(model.get_submodule(last).register_forward_hook(leave))
    try:
        model.base_model(**inputs)
    except _AllSeenError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def _each_once(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Tied weights under one name: safetensors takes no tensor twice, and loading under one name sets both."""
    seen: set[tuple[int, torch.Size]] = set()
    for name in list(state):
        tensor = state[name]
        key = (tensor.data_ptr(), tensor.shape)
        if isinstance(tensor, Tensor) and tensor.numel() and key in seen:
            del state[name]
        seen.add(key)
