"""The compiled operators against the reference in float64: forward and every gradient, in every dtype.

Every input is drawn in the dtype under test, so that all precisions start from the same numbers. A token of which a
logit, on a path that is followed, lies within rounding of 0 is not drawn at all: all others must take the same path in
every precision, and this is asserted.
"""

import os
import random
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastff.ops import ACTIVATIONS, GRADIENTS, Leaves, cmm_in, indexed_feedforward, instruction_set, tree_feedforward
from fastff.ops import use_backend as backend
from fastff.ops.indexed import reference as indexed_reference
from fastff.ops.tree import reference as tree_reference
from fastff.ops.triton.config import use_config

F64 = torch.float64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 3, 63, 64, 768, 1000)
TOKENS = (0, 1, 2, 63, 64, 65, 300, 3000)
NODES = ("none", "one", "S=1", "S=2")  # node_out: None, (K, N, O), (K, N, 1, O), (K, N, 2, O)


@pytest.fixture(autouse=True)
def compiled_kernels(request: pytest.FixtureRequest) -> None:
    """All but the tests of the GPU kernels need them."""
    if instruction_set() is None and "gpu_kernels" not in request.fixturenames:
        pytest.skip("this installation lacks the compiled kernels")


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
    dtype: torch.dtype = torch.float32

    @property
    def valid(self) -> bool:
        return (self.W > 0 or (not self.base and not self.dropout and self.nodes != "none")) and self.cost < 3e6

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


BIG = [
    Tree(300, 768, 768, 1, 12, 0, "one", gradient="none"),
    Tree(3000, 64, 63, 1, 12, 0, "S=2", gradient="exact"),
    Tree(3000, 64, 64, 3, 8, 0, "one", gradient="chosen", dtype=torch.bfloat16),
    Tree(3000, 64, 63, 1, 7, 3, "S=2", True, gradient="sampled", dtype=torch.float16),
]


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
        rows = (W, 2, O) if case.leaf_rows == 2 else (W, O)
        scales_and_shapes = ((I**-0.5, W, I), (0.1, W), (W**-0.5, *rows), (0.1, O))
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

    weights = [
        tensor(I**-0.5, E, W, I),
        tensor(0.1, E, W),
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


@pytest.mark.parametrize("case", drawn(Tree, TREE_OPTIONS, 60) + BIG, ids=str)
def test_tree_equals_the_reference(case):
    check_tree(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [(1, 3), (63, 65), (130, 1000)], ids=str)
def test_compact(dtype, features):
    """What test_instruction_sets runs of each."""
    assert instruction_set() == os.environ.get("FASTFF_INSTRUCTION_SET", instruction_set())
    for activation in ACTIVATIONS:
        check_tree(Tree(70, *features, 2, 4, 3, "S=1", True, activation, dtype=dtype))
        check_indexed(Indexed(70, 2, 5, 3, *features, activation, dtype=dtype))
    check_tree(Tree(300, *features, 1, 8, 1, "S=2", False, gradient="sampled", dropout=0.2, dtype=dtype))


@pytest.mark.parametrize("case", drawn(Indexed, INDEXED_OPTIONS, 40), ids=str)
def test_indexed_equals_the_reference(case):
    check_indexed(case)


GPU_TREES = [  # several blocks, sorted and few tokens, wide and narrow leaves, sums in parts
    Tree(70, 33, 34, 2, 3, 3, "S=2", True, "gelu", "exact", leaf_rows=2),
    Tree(20, 9, 70, 1, 5, 1, "S=2", False, "silu", "exact"),
    Tree(129, 65, 3, 3, 4, 1, "S=1", True, "tanh", "sampled", 0.3),
    Tree(300, 8, 9, 1, 4, 0, "one", False, "gelu", "none"),
    Tree(30, 17, 70, 2, 1, 80, "S=2", True, "relu", "exact"),
    Tree(30, 1, 1, 1, 0, 40, "none", False, "gelu", "exact", 0.3, logits=False),
    Tree(1100, 3, 5, 1, 2, 2, "S=2", False, "identity", "chosen"),
    Tree(70, 130, 66, 1, 4, 8, "none", False, "gelu", "exact", dtype=torch.bfloat16),
    Tree(70, 40, 40, 2, 4, 1, "S=2", True, "gelu", "chosen", leaf_rows=2, dtype=torch.float16),
    Tree(0, 3, 5, 2, 3, 1, "S=1", True),
]
GPU_EXPERTS = [
    Indexed(70, 2, 5, 3, 33, 34, "silu", dropout=0.3),
    Indexed(40, 1, 3, 80, 65, 3, gate=False, dtype=torch.bfloat16),
    Indexed(300, 2, 5, 3, 8, 9),  # so many that a gradient is summed in parts
    Indexed(70, 4, 30, 1, 33, 34, bias=False),
    Indexed(0, 2, 3, 5, 4, 4),
]


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("case", GPU_TREES, ids=str)
def test_trees_on_gpu_kernels_equal_the_reference(case):
    with use_config(levels=2):  # so that small trees have several blocks
        check_tree(case)


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("case", GPU_EXPERTS, ids=str)
def test_experts_on_gpu_kernels_equal_the_reference(case):
    check_indexed(case)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("case", [c for c in drawn(Tree, TREE_OPTIONS, 60) if c.T < 1000], ids=str)
def test_any_tree_on_gpu_kernels_equals_the_reference(case):
    check_tree(case)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("case", [c for c in drawn(Indexed, INDEXED_OPTIONS, 40) if c.T < 1000], ids=str)
def test_any_experts_on_gpu_kernels_equal_the_reference(case):
    check_indexed(case)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=st.builds(Tree, **{k: st.sampled_from(v) for k, v in TREE_OPTIONS.items()}).filter(lambda c: c.valid))
def test_any_tree_equals_the_reference(case):
    check_tree(case, seed=1)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.fixed_dictionaries(
        {
            "T": st.integers(0, 150),
            "I": st.integers(1, 150),
            "O": st.integers(1, 150),
            "K": st.integers(1, 4),
            "D": st.integers(0, 9),
            "W": st.integers(1, 9),
        }
    ),
    nodes=st.sampled_from(NODES),
    base=st.booleans(),
    gradient=st.sampled_from(GRADIENTS),
    dtype=st.sampled_from(DTYPES),
)
def test_trees_of_any_size_equal_the_reference(sizes, nodes, base, gradient, dtype):
    check_tree(Tree(**sizes, nodes=nodes, base=base, gradient=gradient, dtype=dtype), seed=2)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(
        st.integers(0, 150),
        st.integers(1, 5),
        st.integers(1, 80),
        st.integers(1, 20),
        st.integers(1, 150),
        st.integers(1, 150),
    ),
    activation=st.sampled_from(list(ACTIVATIONS)),
    gate=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    dtype=st.sampled_from(DTYPES),
)
def test_indexed_of_any_size_equals_the_reference(sizes, activation, gate, dropout, dtype):
    check_indexed(Indexed(*sizes, activation, gate, dropout, dtype), seed=3)


def test_public_function_on_the_reference_backend_draws_the_same():
    """What the other tests take for granted: levels and mask come from the seed alone, in the same order."""
    case = Tree(65, 3, 3, 2, 3, 3, "S=2", True, gradient="sampled", dropout=0.3)
    a = tree_arguments(case)
    with backend("reference"):
        through_function = run_tree(case, a)
    for v, e in zip(through_function.values, define_tree(case, a).values, strict=True):
        assert torch.equal(v, e)
    case = Indexed(65, 3, 3, 2, 3, 3, dropout=0.3)
    a = indexed_arguments(case)
    with backend("reference"):
        through_function = run_indexed(case, a)
    for v, e in zip(through_function.values, define_indexed(case, a).values, strict=True):
        assert torch.equal(v, e)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(gradient):
    case = Tree(70, 33, 34, 2, 4, 3, "S=2", True, gradient=gradient)
    a = tree_arguments(case)
    _, _, *every = run_tree(case, a).values
    assert len(every) == 12
    for wanted in [[i] for i in range(12)] + [[0, 3], [1, 2, 3], [4, 5, 6, 7], [6, 11]]:
        inputs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(a.inputs)]
        some = Arguments(inputs, a.drawn, a.grads, a.seed)
        if gradient == "sampled" and not set(wanted) & {0, 1, 2}:  # then nothing is drawn; nor does it matter
            some = some._replace(drawn=[None, None])
        _, _, *found = run_tree(case, some).values
        for i, g in zip(wanted, found, strict=True):
            assert torch.equal(g, every[i])


def test_indexed_gradients_do_not_depend_on_which_others_are_asked_for():
    case = Indexed(70, 2, 9, 3, 33, 34)
    a = indexed_arguments(case)
    _, *every = run_indexed(case, a).values
    for place, wanted in enumerate([0, 2, 3, 4, 5, 6]):
        inputs = [t if i == 1 else t.detach().requires_grad_(i == wanted) for i, t in enumerate(a.inputs)]
        _, found = run_indexed(case, Arguments(inputs, a.drawn, a.grads, a.seed)).values
        assert torch.equal(found, every[place])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_loss_of_the_logits_alone_equals_the_reference(gradient, dtype):
    case = Tree(65, 33, 3, 2, 4, 2, "S=1", gradient=gradient, dtype=dtype)
    a = tree_arguments(case)

    def decisions(run: Any, a: Arguments) -> Result:
        outputs = run(case, a._replace(grads=[])).values  # the outputs, no gradient yet
        wanted = a.inputs[:3]
        return Result([outputs[1], *torch.autograd.grad(outputs[1], wanted, a.grads[1].to(outputs[1].dtype))])

    assert_as_exact_as_torch(
        decisions(run_tree, a), decisions(define_tree, a), decisions(define_tree, a.to(F64)), dtype
    )


@pytest.mark.parametrize("case", [c for c in drawn(Tree, TREE_OPTIONS, 60) if c.T > 1][:20], ids=str)
def test_sparse_gradients_are_the_dense_ones(case):
    a = tree_arguments(case)
    dense, sparse = run_tree(case, a), run_tree(case, a, sparse=True)
    for d, s in zip(dense.values, sparse.values, strict=True):
        assert torch.equal(d, s.to_dense() if s.is_sparse else s)
        if s.is_sparse:
            rows = s._indices()[0] * s.shape[1] + s._indices()[1]
            assert (rows.diff() > 0).all()  # coalesced, as it claims
