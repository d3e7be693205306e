"""Where new layers start: at the pretrained neurons that matter most, with what those leave out as a bias.

A tree that grows begins as a dense layer of the neurons that a token runs, so it can begin as a pruned copy of the
function that it replaces. Trees whose leaves alone put out begin with leaves of their own (`start_leaves`), experts
with neurons that are active together (`start_experts`). What the chosen neurons put out is fitted again, by least
squares, to the whole function's output. Where the new layer's neurons are gated and the function's are not, or the
other way round, the output's mean is taken alone.
"""

import torch
from torch import Tensor

from fastff.hf.distillation.distiller import Distiller, captured
from fastff.hf.distillation.experts import start_experts
from fastff.hf.distillation.fit import Neurons, fit, values
from fastff.hf.distillation.leaves import has_own_leaves, start_leaves
from fastff.nn import PEER, FeedForward, FeedForwardLayer, MoE, TreeFeedForward


@torch.no_grad()
def start_from_neurons(distiller: Distiller, batches: list[dict[str, Tensor]]) -> None:
    """Set the new layers of the student, in place, from the teacher's functions on some batches of inputs."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for batch in batches:
        for name, (x, y) in captured(distiller.teacher, distiller.functions, batch).items():
            seen.setdefault(name, []).append((x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])))
    for name, function in distiller.functions.items():
        x_TI, y_TO = (torch.cat(parts).float() for parts in zip(*seen.pop(name), strict=True))
        place = distiller.student.get_submodule(name)
        layer = next(module for module in place.modules() if isinstance(module, FeedForwardLayer))
        start(layer, Neurons.of(name, function, distiller.teacher), x_TI, y_TO)


@torch.no_grad()
def start(layer: FeedForwardLayer, neurons: Neurons | None, x_TI: Tensor, y_TO: Tensor) -> None:
    """Set `layer` to be near a function on some tokens, in place.

    Args:
        layer: a new layer; what it has no use for pretrained neurons for stays as it is.
        neurons: of the function; None if they are not known.
        x_TI, y_TO: its inputs and outputs.
    """
    if neurons is not None and neurons.gates != 1 + getattr(layer, "gated", False):
        neurons = None
    if isinstance(layer, TreeFeedForward) and has_own_leaves(layer):
        layer.merge_base()
        start_leaves(layer, neurons, x_TI, y_TO)
        return
    if isinstance(layer, MoE) and neurons is not None:
        start_experts(layer, neurons, x_TI, y_TO)
        return
    rows = _Rows.of(layer)
    if rows is None:
        return
    if neurons is None:
        rows.set_bias(y_TO.mean(0))
        return
    z_TNG = neurons.logits(x_TI)
    chosen = neurons.most_used(z_TNG, y_TO.std(0).clamp_min(1e-6), rows.count)
    rows.set_inputs(neurons.w1[chosen], neurons.b1[chosen])
    fitted_FO, bias_O = fit(values(z_TNG[:, chosen], rows.activation, rows.sides), y_TO)
    rows.set_outputs(fitted_FO)
    rows.set_bias(bias_O)


class _Rows:
    """The neurons that every token runs at first, as one dense layer: of a dense layer all, of trees that will grow
    those of the paths, of trees that see a projection and of PEER the master leaf's.

    Args:
        inputs: pairs of a weight (..., G, in) and a bias (..., G), whose neurons follow each other; G = 2 if gated.
        outputs: for each pair the output rows (..., sides, out).
        biases: of the output, each (..., out): together they are it; none: the last neuron stands in.
        activation: of a neuron with one side; one of two sides puts out relu(-z) and relu(z).
    """

    def __init__(
        self, inputs: list[tuple[Tensor, Tensor]], outputs: list[Tensor], biases: list[Tensor], activation: str
    ) -> None:
        self.inputs, self.outputs, self.biases, self.activation = inputs, outputs, biases, activation
        self.count = sum(bias[..., 0].numel() for _, bias in inputs) - (not biases)
        self.sides = outputs[0].shape[-2]

    @classmethod
    def of(cls, layer: FeedForwardLayer) -> "_Rows | None":
        """Those of `layer`; None if it has no such neurons."""
        if isinstance(layer, FeedForward):
            w1, b1 = (p.detach().unflatten(0, (-1, layer.width)).transpose(0, 1) for p in (layer.w1, layer.b1))
            return cls([(w1, b1)], [layer.w2.unsqueeze(-2)], [layer.b2], layer.activation)
        if not isinstance(layer, TreeFeedForward | PEER):
            return None
        p = {name: getattr(layer, name) for name in layer.parameter_names}
        leaf = "expert" if isinstance(layer, PEER) else "base" if layer.shared_base else "leaf"
        biases = [p[f"{leaf}_b2"][:, :1]] if f"{leaf}_b2" in p else []
        if isinstance(layer, PEER) or layer.rank is not None or not layer.contributing:
            if not layer.master_width:
                return None
            p[f"{leaf}_w2"].zero_()  # what trees or experts add is learned
            master = p["master_w1"].unsqueeze(-2), p["master_b1"].unsqueeze(-1)
            return cls([master], [p["master_w2"].unsqueeze(-2)], biases, layer.activation)
        if not biases:
            return None
        inputs, outputs = [], []
        for level in range(layer.depth):
            row = slice(2**level - 1, 2**level)  # the first of its level: with growth the only one in use
            inputs.append((p["node_weight"][:, row].unsqueeze(-2), p["node_bias"][:, row].unsqueeze(-1)))
            outputs.append(p["node_out"][:, row])
        inputs.append((p[f"{leaf}_w1"][:, :1].unsqueeze(-2), p[f"{leaf}_b1"][:, :1].unsqueeze(-1)))
        out = p[f"{leaf}_w2"][:, :1]
        outputs.append(out if layer.two_sided else out.unsqueeze(-2))
        return cls(inputs, outputs, biases, layer.activation)

    def set_inputs(self, weight_NGI: Tensor, bias_NG: Tensor) -> None:
        """Give the first N neurons these weights."""
        for weight, bias in self.inputs:
            n = min(bias[..., 0].numel(), len(bias_NG))
            _fill(weight, weight_NGI[:n])
            _fill(bias, bias_NG[:n])
            weight_NGI, bias_NG = weight_NGI[n:], bias_NG[n:]

    def set_outputs(self, rows_FO: Tensor) -> None:
        """Give the first neurons these output rows, all sides of one together; the others none."""
        for out in self.outputs:
            n = min(out[..., 0].numel(), len(rows_FO))
            out.zero_()
            _fill(out, rows_FO[:n])
            rows_FO = rows_FO[n:]

    def set_bias(self, bias_O: Tensor) -> None:
        """Let the layer put this out beside its neurons; without biases by the last neuron, which is always on."""
        for bias in self.biases:
            bias.copy_((bias_O / (bias.numel() // len(bias_O))).expand_as(bias))
        if not self.biases:
            weight, bias = self.inputs[-1]
            weight.view(-1, weight.shape[-1])[-1] = 0
            bias.view(-1)[-1] = 1
            on = values(bias.view(-1, 1, 1)[-1:], self.activation, self.sides)[0, -1]
            self.outputs[-1].view(-1, len(bias_O))[-1] = bias_O / on


def _fill(parameter: Tensor, rows: Tensor) -> None:
    """Write `rows` (n, ...) over the first n of a parameter whose leading dimensions are flattened."""
    flat = parameter.reshape(-1, *rows.shape[1:]).clone()
    flat[: len(rows)] = rows
    parameter.copy_(flat.view_as(parameter))
