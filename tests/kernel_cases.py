"""Calls of the compiled operators, drawn at random, and their comparison with the reference in float64.

Every input is drawn in the dtype under test, so that all precisions start from the same numbers. A token of which a
logit, on a path that is followed, lies within rounding of 0 is not drawn at all: all others must take the same path in
every precision, and this is asserted.
"""

import random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastff.ops import ACTIVATIONS, GRADIENTS, Leaves, cmm_in, indexed_feedforward, tree_feedforward
from fastff.ops.indexed import reference as indexed_reference
from fastff.ops.tree import reference as tree_reference

F64 = torch.float64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 3, 63, 64, 768, 1000)
TOKENS = (0, 1, 2, 63, 64, 65, 300, 3000)
NODES = ("none", "one", "S=1", "S=2")  # node_out: None, (K, N, O), (K, N, 1, O), (K, N, 2, O)


class Tree(NamedTuple):
    T: int
    I: int
    O: int
    K: int
    D: int
    W: int  # 0: no leaves
    nodes: str
    base: bool = False
    activation: str = "gelu"
    gradient: str = "exact"
    dropout: float = 0.0
    logits: bool = True  # a gradient comes in through path.logits too
    leaf_rows: int = 1  # output rows of a leaf's neuron
    gated: bool = False  # those of one row
    dtype: torch.dtype = torch.float32

    @property
    def valid(self) -> bool:
        leaves = self.W > 0 or (not self.base and not self.dropout and self.nodes != "none")
        return leaves and not (self.gated and self.leaf_rows == 2) and self.cost < 3e6

    @property
    def cost(self) -> float:
        """Numbers in the weights, or products a forward and backward of the reference take, whichever is more."""
        features, rows = self.I + self.O + 30, self.W + NODES.index(self.nodes)
        sides = {"exact": self.D + 1, "sampled": 2}.get(self.gradient, 1)
        return self.K * features * max(2**self.D * rows, self.T * (self.W + self.D) * sides / 5)

    def __str__(self) -> str:
        return ",".join(f"{k} {str(v).removeprefix('torch.')}" for k, v in self._asdict().items())


class Indexed(NamedTuple):
    T: int
    S: int
    E: int
    W: int
    I: int
    O: int
    activation: str = "gelu"
    gate: bool = True
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32
    bias: bool = True
    gated: bool = False

    @property
    def valid(self) -> bool:
        return (self.I + self.O) * self.W * max(self.E, self.T * self.S / 10) < 3e6

    __str__ = Tree.__str__


TREE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "T": TOKENS,
    "I": SIZES,
    "O": SIZES,
    "K": (1, 3),
    "D": tuple(range(13)),
    "W": (0, 1, 3, 32),
    "nodes": NODES,
    "base": (False, True),
    "activation": tuple(ACTIVATIONS),
    "gradient": GRADIENTS,
    "dropout": (0.0, 0.3),
    "logits": (False, True),
    "leaf_rows": (1, 2),
    "dtype": DTYPES,
}
INDEXED_OPTIONS: dict[str, tuple[Any, ...]] = {
    "T": TOKENS,
    "S": (1, 2, 3),
    "E": (1, 3, 64, 5000),
    "W": (1, 3, 32),
    "I": SIZES,
    "O": SIZES,
    "activation": tuple(ACTIVATIONS),
    "gate": (False, True),
    "dropout": (0.0, 0.3),
    "dtype": DTYPES,
    "bias": (False, True),
}
GATED: dict[str, tuple[Any, ...]] = {"gated": (True,)}


def drawn(kind: Any, options: dict[str, tuple[Any, ...]], count: int, seed: int = 0) -> list[Any]:
    """Cases at random, the same in every run, of which no option leaves out a value."""
    generator, cases = random.Random(seed), []
    missing = {(name, value) for name, values in options.items() for value in values}
    while len(cases) < count:
        case = kind(**{name: generator.choice(values) for name, values in options.items()})
        new = set(case._asdict().items()) & missing
        if case.valid and (new or len(missing) < count - len(cases)):
            cases.append(case)
            missing -= new
    assert not missing, f"raise count: without {missing}"
    return cases


def random_tensor(dtype: torch.dtype, scale: float, *shape: int) -> Tensor:
    return (scale * torch.randn(shape)).to(dtype).requires_grad_()


class Arguments(NamedTuple):
    inputs: list[Tensor | None]  # of the operator, those that learn
    drawn: list[Tensor | None]  # what is drawn at random of them: levels and mask, or the mask
    grads: list[Tensor]  # that come in
    seed: int

    def to(self, dtype: torch.dtype) -> "Arguments":
        def cast(tensors: list[Any]) -> list[Any]:
            return [t if t is None or not t.is_floating_point() else t.detach().to(dtype) for t in tensors]

        inputs = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in cast(self.inputs)]
        return Arguments(inputs, cast(self.drawn), cast(self.grads), self.seed)


def clearly_decided(x: Tensor, weight: Tensor, bias: Tensor, others: bool) -> Tensor:
    """Whether every logit on the path of a token, and below its other sides, is further from 0 than rounding."""
    dtype = x.dtype
    x, weight, bias = x.detach().to(F64), weight.detach().to(F64), bias.detach().to(F64)
    K, N = bias.shape
    D = (N + 1).bit_length() - 1
    clear = torch.ones(len(x), dtype=torch.bool)
    first = torch.arange(K) * N
    length = x.norm(dim=1, keepdim=True)

    def follow(node: Tensor, level: int) -> list[Tensor]:
        passed = []
        for _ in range(level, D):
            row = node + first
            z = cmm_in(x, weight.flatten(0, 1).unsqueeze(1), row).squeeze(-1) + bias.flatten()[row]
            # A sum of products in float32; the bias is added in the dtype.
            rounding = 4e-7 * length * weight.flatten(0, 1)[row].norm(dim=-1)
            rounding += torch.finfo(dtype).eps * bias.flatten()[row].abs()
            clear.logical_and_((z.abs() > rounding).all(1))
            node = 2 * node + 1 + (z >= 0).long()
            passed.append(node)
        return passed

    path = follow(torch.zeros(len(x), K, dtype=torch.int64), 0)
    if others:
        for level, node in enumerate(path):
            follow(torch.where(node % 2 == 1, node + 1, node - 1), level + 1)
    return clear


def tree_arguments(case: Tree, seed: int = 0) -> Arguments:
    T, I, O, K, D, W = case[:6]
    N, L, dtype = 2**D - 1, 2**D, case.dtype
    torch.manual_seed(seed)
    node_weight, node_bias = random_tensor(dtype, I**-0.5, K, N, I), random_tensor(dtype, 0.1, K, N)
    shape = {"none": None, "one": (O,), "S=1": (1, O), "S=2": (2, O)}[case.nodes]
    node_out = None if shape is None else random_tensor(dtype, (D + W) ** -0.5 if D + W else 1.0, K, N, *shape)

    def leaves(count: int) -> list[Tensor | None]:
        rows, H = (W, 2, O) if case.leaf_rows == 2 else (W, O), 2 * W if case.gated else W
        scales_and_shapes = ((I**-0.5, H, I), (0.1, H), (W**-0.5, *rows), (0.1, O))
        return [random_tensor(dtype, scale, K, count, *shape) for scale, *shape in scales_and_shapes]

    own = leaves(L) if W else [None] * 4
    base = leaves(1) if case.base else [None] * 4
    x = torch.empty(0, I, dtype=dtype)
    others = case.gradient in ("exact", "sampled")
    while len(x) < T:
        more = torch.randn(T + 8, I).to(dtype)
        x = torch.cat([x, more[clearly_decided(more, node_weight, node_bias, others)]])[:T]
    grads = [torch.randn(T, O).to(dtype), *([torch.randn(T, K, D)] if case.logits else [])]
    torch.manual_seed(seed)  # as the operator draws
    levels = torch.randint(D, (T, K)) if case.gradient == "sampled" and D else None
    mask = F.dropout(torch.ones(T, K, W, dtype=dtype), case.dropout) if case.dropout else None
    inputs = [x.requires_grad_(), node_weight, node_bias, node_out, *own, *base]
    return Arguments(inputs, [levels, mask], grads, seed)


def structured(inputs: list[Any]) -> tuple[Any, ...]:
    """x, node_weight, node_bias, node_out, leaves, base."""
    leaves, base = (None if part[0] is None else Leaves(*part) for part in (inputs[4:8], inputs[8:12]))
    return (*inputs[:4], leaves, base)


def gradients(outputs: list[Tensor], a: Arguments) -> list[Tensor]:
    wanted = [t for t in a.inputs if t is not None and t.requires_grad]
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, a.grads, strict=False) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in wanted]
    results, grads = zip(*pairs, strict=True)
    return list(torch.autograd.grad(results, wanted, grads, allow_unused=True, materialize_grads=True))


class Result(NamedTuple):
    values: list[Tensor]  # outputs, gradients
    leaf: Tensor | None = None


def run_tree(case: Tree, a: Arguments, **options: Any) -> Result:
    torch.manual_seed(a.seed)
    y, path = tree_feedforward(
        *structured(a.inputs),
        activation=case.activation,
        gradient=case.gradient,
        dropout=case.dropout,
        **options,
    )
    return Result([y, path.logits, *gradients([y, path.logits], a)], path.leaf)


def define_tree(case: Tree, a: Arguments) -> Result:
    y, path = tree_reference.tree_feedforward(
        *structured(a.inputs), activation=case.activation, gradient=case.gradient, levels=a.drawn[0], mask=a.drawn[1]
    )
    return Result([y, path.logits, *gradients([y, path.logits], a)], path.leaf)


def indexed_arguments(case: Indexed, seed: int = 0) -> Arguments:
    T, S, E, W, I, O = case[:6]
    torch.manual_seed(seed)

    def tensor(scale: float, *shape: int) -> Tensor:
        return random_tensor(case.dtype, scale, *shape)

    H = 2 * W if case.gated else W
    weights = [
        tensor(I**-0.5, E, H, I),
        tensor(0.1, E, H),
        tensor(W**-0.5, E, W, O),
        tensor(0.1, E, O) if case.bias else None,
    ]
    gate = tensor(1.0, T, S) if case.gate else None
    x, index, grads = tensor(1.0, T, I), torch.randint(E, (T, S)), [torch.randn(T, O).to(case.dtype)]
    torch.manual_seed(seed)
    mask = F.dropout(torch.ones(T, S, W, dtype=case.dtype), case.dropout) if case.dropout else None
    return Arguments([x, index, *weights, gate], [mask], grads, seed)


def run_indexed(case: Indexed, a: Arguments) -> Result:
    torch.manual_seed(a.seed)
    *args, gate = a.inputs
    y = indexed_feedforward(*args, gate=gate, activation=case.activation, dropout=case.dropout)
    return Result([y, *gradients([y], a)])


def define_indexed(case: Indexed, a: Arguments) -> Result:
    *args, gate = a.inputs
    y = indexed_reference.indexed_feedforward(*args, gate=gate, activation=case.activation, mask=a.drawn[0])
    return Result([y, *gradients([y], a)])


def assert_as_exact_as_torch(ours: Result, torchs: Result, truth: Result, dtype: torch.dtype) -> None:
    """The error is at most twice PyTorch's in the same dtype, plus a last place and what summing in float32 costs."""
    T = len(truth.values[0])
    assert len(ours.values) == len(torchs.values) == len(truth.values)
    for i, (o, t, e) in enumerate(zip(ours.values, torchs.values, truth.values, strict=True)):
        assert o.shape == t.shape == e.shape
        assert o.dtype == t.dtype
        if not e.numel():
            continue
        o, t, e = (v.detach().to(F64) for v in (o, t, e))
        error, bound = (o - e).abs(), (t - e).abs()
        summands = 1 if len(e) == T else T  # a weight's gradient is the sum over tokens
        summing = torch.finfo(torch.float32).eps * (4 + summands + summands**0.5 * e.abs().max())
        little = torch.finfo(dtype).eps * e.abs() + summing
        for size in (torch.amax, torch.linalg.norm):
            found, limit = float(size(error)), float(2 * size(bound) + size(little))
            assert found <= limit, f"value {i}, of shape {tuple(e.shape)}: error {found:.3g}, limit {limit:.3g}"


def check_tree(case: Tree, seed: int = 0) -> None:
    a = tree_arguments(case, seed)
    ours, torchs, truth = run_tree(case, a), define_tree(case, a), define_tree(case, a.to(F64))
    assert torch.equal(ours.leaf, truth.leaf)
    assert torch.equal(torchs.leaf, truth.leaf)
    assert_as_exact_as_torch(ours, torchs, truth, case.dtype)


def check_indexed(case: Indexed, seed: int = 0) -> None:
    a = indexed_arguments(case, seed)
    assert_as_exact_as_torch(run_indexed(case, a), define_indexed(case, a), define_indexed(case, a.to(F64)), case.dtype)
