"""No speed without the right result: each candidate against the definition of its layer.

The definition is the same layer, of the same weights, on the reference backend in float64 (float32 where that would not
fit, or where both must draw the same random numbers). A row whose way rests on a logit within rounding of zero, or on
two experts' gates as close, may rightly differ and is not compared.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.bench.candidate import Candidate
from fastff.nn import PEER, FeedForwardLayer, MoE, TreeFeedForward, UltraFFF
from fastff.nn.int8_layer import Int8Layer
from fastff.nn.peer import best_pairs
from fastff.nn.tree_layer import TreeLayer
from fastff.ops import tree_int8, use_backend

ROWS = 512  # compared at most
TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05, "int8": 0.25}  # of the output's root mean square
GRADIENT_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05}  # of the gradient's norm
STEP_TOLERANCE = 0.02  # of the norm of what a weight moved
CHECKED_STEPS, CHECKED_RATE = 3, 1e-3
COPY_BYTES = 2**30  # a larger layer is compared with itself on the reference backend, not with a float64 copy


class DisagreementError(RuntimeError):
    """A candidate's result is not that of its definition."""


def check_output(candidate: Candidate, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Compare what `module` put out, in inference, with its definition.

    Args:
        candidate: gives label and dtype.
        module: as `candidate.build` made it.
        inputs, outputs: batches (T, I) and (T, O), whole calls.

    Raises:
        DisagreementError: they differ, or have the wrong shape.
    """
    layer = _definition(module)
    truth = _precise(layer, candidate)
    for x, y in zip(inputs, outputs, strict=True):
        if y.shape != (len(x), layer.out_features):
            raise DisagreementError(f"{candidate.label}: output of shape {tuple(y.shape)} for {len(x)} tokens")
    rows = torch.cat([x[_some(len(x))] for x in inputs])
    found = torch.cat([y[_some(len(y))] for y in outputs]).double()
    dtype = torch.float32 if _in_int8(truth) else next(truth.parameters()).dtype
    chosen = _chosen(layer, rows)
    with torch.inference_mode(), use_backend("reference"):
        expected = truth(rows.to(dtype)).double()
        clear = _comparable(truth, rows.to(dtype), chosen, candidate)
    if not clear.any():
        raise DisagreementError(f"{candidate.label}: no row whose decisions are clear of rounding, so none to compare")
    error = _largest(found[clear] - expected[clear]) / expected.square().mean().sqrt().item()
    tolerance = TOLERANCE[candidate.dtype_name]
    if not error <= tolerance:
        raise DisagreementError(
            f"{candidate.label}: output differs from the definition by {error:.2g} of its size, "
            f"at most {tolerance:g} may be rounding"
        )


def check_gradients(candidate: Candidate, module: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Compare output and gradients of `module`, in training, with those of the reference backend in float32.

    Args:
        candidate: gives the label.
        module: as `candidate.build` made it.
        batches: (x, gradient of the output); of each the first rows are used, the second batch only if the first
            differs: a logit within rounding of zero on a side not taken can turn a gradient.

    Raises:
        DisagreementError: they differ on every batch.
    """
    layer = _definition(module)
    dtype = torch.float32
    truth = copy.deepcopy(layer).to(dtype)
    tolerance = GRADIENT_TOLERANCE[candidate.dtype_name]
    worst = ("", math.inf)
    for x, gradient in batches[:2]:
        x, gradient = x[:ROWS], gradient[:ROWS]
        chosen = _chosen(layer, x)
        with use_backend("reference"):
            torch.manual_seed(0)
            expected = _gradients(truth, x.to(dtype), gradient.to(dtype))
            clear = _comparable(truth, x.to(dtype), chosen, candidate)
            if not clear.all():
                x, gradient = x[clear], gradient[clear]
                torch.manual_seed(0)
                expected = _gradients(truth, x.to(dtype), gradient.to(dtype))
        torch.manual_seed(0)
        found = _gradients(module, x, gradient)
        worst = max(((n, _relative(found.get(n), g)) for n, g in expected.items()), key=lambda pair: pair[1])
        if worst[1] <= tolerance:
            return
    name, error = worst
    what = name if name == "output" else f"gradient of {name}"
    raise DisagreementError(f"{candidate.label}: {what} differs from the definition by {error:.2g} of its norm")


def check_steps(candidate: Candidate, module: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Compare what steps of the candidate's optimiser make of the weights with what `torch.optim.AdamW` makes of them.

    Args:
        candidate: gives label and optimiser.
        module: as `candidate.build` made it; only copies of it are trained.
        batches: (x, gradient of the output), of which the first rows are used.

    Raises:
        DisagreementError: the weights differ.
    """
    ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
    if isinstance(theirs, UltraFFF | TreeFeedForward):
        theirs.sparse = False
    assert candidate.optimizer is not None
    optimizer = candidate.optimizer(ours)
    for group in optimizer.param_groups:
        group["lr"] = CHECKED_RATE
    options = {key: optimizer.param_groups[0][key] for key in ("betas", "eps", "weight_decay")}
    reference = torch.optim.AdamW(theirs.parameters(), lr=CHECKED_RATE, **options)
    for step, (x, gradient) in enumerate((list(batches) * CHECKED_STEPS)[:CHECKED_STEPS]):
        x, gradient = x[:ROWS], gradient[:ROWS]
        torch.manual_seed(step)
        _backward(ours, x, gradient)
        optimizer.step()
        torch.manual_seed(step)
        with use_backend("reference"):
            _backward(theirs, x, gradient)
        reference.step()
    if hasattr(optimizer, "catch_up"):
        optimizer.catch_up()
    for (name, start), found, expected in zip(
        module.named_parameters(), ours.parameters(), theirs.parameters(), strict=True
    ):
        error = _relative(found.detach() - start.detach(), expected.detach() - start.detach())
        if not error <= STEP_TOLERANCE:
            raise DisagreementError(
                f"{candidate.label}: {name} moves otherwise than by AdamW, by {error:.2g} of its way"
            )


def _definition(module: nn.Module) -> FeedForwardLayer:
    layer = getattr(module, "definition", module)
    assert isinstance(layer, FeedForwardLayer)
    return layer


def _in_int8(layer: FeedForwardLayer) -> bool:
    return isinstance(layer, Int8Layer) and layer.int8 is not None


def _precise(layer: FeedForwardLayer, candidate: Candidate) -> FeedForwardLayer:
    if _in_int8(layer):
        return layer  # what bytes it has is no rounding
    size = sum(p.numel() for p in layer.parameters())
    if 8 * size <= COPY_BYTES:
        return copy.deepcopy(layer).double().eval()
    return layer if candidate.dtype == torch.float32 else copy.deepcopy(layer).float().eval()


def _some(tokens: int) -> Tensor:
    """Rows spread over a batch, so that every thread's share is looked at."""
    return torch.linspace(0, tokens - 1, min(tokens, ROWS)).round().long()


def _chosen(layer: FeedForwardLayer, x: Tensor) -> Tensor | None:
    """The experts that product keys find for each row, in ascending order; None of other layers."""
    if not isinstance(layer, PEER):
        return None
    with torch.no_grad():
        layer(x)
    return layer.routing.leaf.sort(-1).values


def _comparable(truth: FeedForwardLayer, x: Tensor, chosen: Tensor | None, candidate: Candidate) -> Tensor:
    """Which rows of `truth`'s last forward, of x, can be compared with those of the candidate: (T,) bool.

    Those that decide clear of rounding; of the many choices of product keys hardly a row does, so those for which the
    candidate has `chosen` alike, which have to be all that are clear.
    """
    clear = _clear(truth, x, candidate.dtype)
    if chosen is None:
        return clear
    assert isinstance(truth, PEER)
    alike = (chosen == truth.routing.leaf.sort(-1).values).all(-1)
    if (clear & ~alike).any():
        raise DisagreementError(f"{candidate.label}: chooses other experts than the definition")
    return alike


def _clear(layer: FeedForwardLayer, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Which rows of the last forward decide by a margin that no rounding in `dtype` can close: (T,) bool."""
    if isinstance(layer, TreeLayer):
        logits = layer.routing.logits.detach().flatten(1)
        margin = logits.abs()
    elif isinstance(layer, MoE) and not layer.training:  # in training both add the same noise to the same gates
        logits = F.linear(x, layer.gate_weight).detach()
        if layer.choice_bias is not None:
            logits = logits.sigmoid() + layer.choice_bias
        best = logits.topk(min(layer.top_k + 1, layer.experts), dim=-1).values
        margin = (best[:, :-1] - best[:, 1:])[:, layer.top_k - 1 :]
    elif isinstance(layer, PEER):
        logits = _best_scores(layer, x, min(layer.top_k + 1, layer.experts)).detach().flatten(0, 1)
        margin = (logits[:, :-1] - logits[:, 1:])[:, layer.top_k - 1 :].view(len(x), -1)
    else:
        return torch.ones(len(x), dtype=torch.bool)
    if margin.shape[1] == 0:
        return torch.ones(len(x), dtype=torch.bool)
    rounding = max(torch.finfo(torch.float32).eps * math.sqrt(x.shape[1]), 2 * torch.finfo(dtype).eps)
    return margin.amin(1) > rounding * logits.square().mean().sqrt()


def _best_scores(layer: PEER, x: Tensor, count: int) -> Tensor:
    """Of each head, (T, heads, count), but for a constant."""
    if layer.int8 is None:
        return best_pairs(layer.seen(x), layer.query_weight, layer.key_weight, count)[0]
    shape = layer.int8._replace(trees=layer.heads * count)
    _, path = tree_int8(x, layer.int8_tree, shape, activation=layer.activation)
    return path.logits.view(len(x), layer.heads, count).log()  # of a softmax


def _gradients(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of input and parameters, by name."""
    y, x_grad = _backward(module, x, gradient)
    found = {"output": y, "x": x_grad} | {name: p.grad for name, p in _definition(module).named_parameters()}
    return {name: (g.to_dense() if g.is_sparse else g).clone() for name, g in found.items() if g is not None}


def _backward(module: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients anew; returns the output and the gradient of `x`, whatever `x` was made from."""
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    y = module(x)
    y.backward(gradient)
    return y.detach(), x.grad


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _relative(found: Tensor | None, expected: Tensor) -> float:
    """Norm of the difference, of the norm of what is expected; infinite where nothing or not a number is found."""
    norm = expected.norm().item()
    if found is None or found.shape != expected.shape:
        return 0.0 if norm == 0 else math.inf
    error = (found - expected).norm().item()
    return math.inf if math.isnan(error) else error / norm if norm else error
