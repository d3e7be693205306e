"""Whole models as candidates: one model, and copies of it that differ in their feedforward layers alone.

The copies share all other weights with it, one set in memory: attention, norms, embeddings. So all candidates of a
dtype fit into memory together, and the caches see the same of each but for what is compared.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastff.bench.candidate import Candidate, fill_zeros
from fastff.bench.check_model import check_model
from fastff.bench.precision import model_in_int8
from fastff.bench.settings import Settings
from fastff.nn import build_layer, merge_base


@dataclass(frozen=True)
class Layer:
    """A feedforward layer to stand in a model.

    Attributes:
        label, kind: of the candidate.
        name: for `fastff.nn.build_layer`; None: none of ours.
        width: if none of ours, its neurons.
    """

    label: str
    kind: str
    name: str | None = None
    width: int = 0


@dataclass(frozen=True)
class ModelCandidate(Candidate):
    """A model with one kind of feedforward layer.

    Attributes:
        make: makes what is timed.
        token_bytes: about what a token needs in a call.
        precision: "int8" if that is what its products are in.
    """

    label: str
    series: str
    kind: str
    make: Callable[[], nn.Module]
    dtype: torch.dtype
    base: bool
    width: int
    executed: int
    weight_bytes: int
    token_bytes: int
    precision: str = ""
    optimizer: None = None

    def build(self, *, training: bool) -> nn.Module:
        return self.make()

    def working_bytes(self, tokens: int, *, training: bool) -> int:
        return tokens * self.token_bytes


class Family:
    """Models that differ in their feedforward layers alone, each made when first asked for.

    Args:
        s: gives the size.
        layers, vocabulary, activation, dtype: of every model.
        stack: makes the model whose weights all share.
        exchange: (copy of it, layer) -> the model with that layer.
        int8: whether all products of a model are in int8.
    """

    def __init__(
        self,
        s: Settings,
        *,
        layers: int,
        vocabulary: int,
        activation: str,
        dtype: torch.dtype,
        stack: Callable[[], Any],
        exchange: Callable[[Any, Layer], Any],
        int8: bool = False,
    ) -> None:
        self.features, self.layers, self.vocabulary = hidden_size(s), layers, vocabulary
        self.activation, self.dtype, self.stack, self.exchange = activation, dtype, stack, exchange
        self.int8 = int8
        self.made: dict[str | None, Any] = {}  # by label
        self.checked: set[str] = set()

    def candidate(self, layer: Layer, wrap: Callable[[Any], nn.Module], *, base: bool = False) -> ModelCandidate:
        """The model with `layer`, of which `wrap` is timed."""
        width, executed, weights = layer.width, layer.width, 2 * layer.width * self.features
        if layer.name is not None:
            built = build_layer(layer.name, self.features, activation=self.activation, device="meta")
            width, executed = built.training_width, built.inference_width
            weights = sum(p.numel() for p in built.parameters())
        return ModelCandidate(
            label=layer.label,
            series=layer.label,
            kind=layer.kind,
            make=lambda: wrap(self._model(layer)),
            dtype=self.dtype,
            base=base,
            width=width,
            executed=executed,
            weight_bytes=self.layers * weights * self.dtype.itemsize,
            token_bytes=8 * (self.vocabulary + executed),
            precision="int8" if self.int8 else "",
        )

    def check(
        self, candidate: Candidate, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        """Check a candidate's model as `check_model` does, once for all that is timed of it."""
        if candidate.label not in self.checked:
            check_model(candidate, self.made[candidate.label], torch.cat([ids.flatten() for ids in inputs]))
            self.checked.add(candidate.label)

    def _model(self, layer: Layer | None) -> Any:
        key = None if layer is None else layer.label
        if key not in self.made:
            model = self.stack() if layer is None else self.exchange(sharing(self._model(None)), layer)
            made = ready(model, self.features, self.dtype)
            self.made[key] = model_in_int8(made) if self.int8 and layer is not None else made
        return self.made[key]


class Forward(nn.Module):
    """(B, S) ids -> the first that `model` returns: hidden states or logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0]


def hidden_size(s: Settings) -> int:
    """Features of models of the settings; ValueError if they say two sizes."""
    if s.in_features != s.out_features:
        raise ValueError(f"models need out_features = in_features, {s.in_features}, got {s.out_features}")
    if s.in_features % 2:
        raise ValueError(f"models need an even in_features, got {s.in_features}")
    return s.in_features


def heads(s: Settings) -> int:
    """Attention heads of 64 features, or else one."""
    return s.in_features // 64 if s.in_features % 64 == 0 else 1


def batch_of(tokens: int, length: int) -> tuple[int, int]:
    """How many sequences, of what length, make `tokens`: of `length`, or a shorter one; ValueError if none do."""
    if tokens > length and tokens % length:
        raise ValueError(f"tokens must be at most {length} or a multiple of it, for these are sequences, got {tokens}")
    return max(1, tokens // length), min(tokens, length)


def need_transformers() -> None:
    """RuntimeError if they are missing."""
    try:
        import fastff.hf  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(f"models need the package {error.name!r}: pip install 'fastff[hf]'") from None


def ready(model: Any, features: int, dtype: torch.dtype) -> Any:
    """`model` for inference, no weight of it zero."""
    fill_zeros(model, features)
    merge_base(model.eval())
    return fill_zeros(model, features).to(dtype)


def sharing(model: Any) -> Any:
    """A copy of `model` that has its parameters, until modules are exchanged."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})
