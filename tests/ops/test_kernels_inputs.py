"""The compiled operators given what is out of the ordinary: strides, garbage memory, NaN, sizes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastff.ops import GRADIENTS, Leaves, indexed_feedforward, instruction_set, tree_feedforward, use_backend

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")


def flat(arguments: list[Any]) -> list[Tensor]:
    """The tensors of nested arguments."""
    found: list[Tensor] = []
    for a in arguments:
        found += [a] if isinstance(a, Tensor) else [] if a is None else a
    return found


def results(call: Any, arguments: list[Any], **options: Any) -> list[Tensor]:
    """Outputs and all gradients, of a loss that weighs every output differently."""
    torch.manual_seed(1)
    out = call(*arguments, **options)
    outputs = [out] if isinstance(out, Tensor) else [out[0], out[1].logits]
    torch.manual_seed(2)
    loss = sum((o.double() * torch.randn(o.shape, dtype=torch.float64)).sum() for o in outputs)
    wanted = [t for t in flat(arguments) if t.requires_grad]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [*outputs, *grads]


def run_indexed(*arguments: Tensor, **options: Any) -> Tensor:
    *others, gate = arguments
    return indexed_feedforward(*others, gate=gate, **options)


def assert_equal_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(f, e), f"value {i}"


def transposed(t: Tensor) -> Tensor:
    return t.detach().mT.contiguous().mT if t.dim() > 1 else sliced(t)


def sliced(t: Tensor) -> Tensor:
    return torch.stack([torch.full_like(t.detach(), 7), t.detach()], -1)[..., 1]


def offset(t: Tensor) -> Tensor:
    """Contiguous, at an address that is a multiple of the element's size alone."""
    memory = torch.empty(t.numel() + 1, dtype=t.dtype)
    memory[1:] = t.detach().flatten()
    return memory[1:].view(t.shape)


@pytest.mark.parametrize("layout", [transposed, sliced, offset])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_in_memory_does_not_matter(tree_arguments, indexed_arguments, dtype, layout):
    def laid_out(a: Any) -> Any:
        if isinstance(a, Leaves):
            return Leaves(*map(laid_out, a))
        changed = layout(a)
        assert torch.equal(changed, a)
        return changed.requires_grad_(a.requires_grad)

    for call, arguments in (
        (tree_feedforward, tree_arguments(dtype=dtype)),
        (run_indexed, indexed_arguments(dtype=dtype)),
    ):
        changed = [laid_out(a) for a in arguments]
        if layout is not offset:
            assert not any(t.is_contiguous() for t in flat(changed) if t.dim() == 2)
        assert_equal_bits(results(call, changed), results(call, arguments))


def test_expanded_arguments_equal_their_copies(tree_arguments, indexed_arguments):
    for call, arguments in ((tree_feedforward, tree_arguments()), (run_indexed, indexed_arguments())):
        expanded = [a if a is None or isinstance(a, Leaves) else a[:1].detach().expand_as(a) for a in arguments]
        copies = [a.clone() if isinstance(a, Tensor) else a for a in expanded]
        for group in (expanded, copies):
            for i, a in enumerate(group):
                if isinstance(a, Tensor) and a.is_floating_point():
                    group[i] = a.detach().requires_grad_()
        assert_equal_bits(results(call, expanded), results(call, copies))


def test_expanded_and_strided_gradients_come_in(tree_arguments):
    arguments = tree_arguments()
    inputs = flat(arguments)
    y, path = tree_feedforward(*arguments)
    whole = [torch.ones_like(y), torch.full_like(path.logits, 0.5)]
    strided = [torch.ones(()).expand_as(y), transposed(whole[1])]
    found = [torch.autograd.grad([y, path.logits], inputs, g, retain_graph=True) for g in (whole, strided)]
    assert_equal_bits(list(found[1]), list(found[0]))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("sizes", [(70, 33, 34), (1, 64, 64), (0, 3, 5), (600, 1, 1)], ids=str)
def test_all_of_an_output_is_written(tree_arguments, poisoned, sizes, gradient):
    for K, D, W, S, base in ((1, 8, 2, 2, True), (3, 5, 0, 1, False), (2, 0, 3, 1, True), (2, 4, 1, 0, False)):
        arguments = tree_arguments(*sizes, K=K, D=D, W=W, S=S, base=base)
        for sparse in (False, True):
            for value in results(tree_feedforward, arguments, gradient=gradient, sparse=sparse):
                assert value.to_dense().isfinite().all()
        with torch.no_grad():
            y, path = tree_feedforward(*arguments)
        assert y.isfinite().all()
        assert path.logits.isfinite().all()
        assert (path.leaf < 2**D).all()


@pytest.mark.parametrize("sizes", [(70, 2, 5), (1, 1, 9), (0, 2, 3), (5, 0, 3), (600, 3, 300)], ids=str)
def test_all_of_an_indexed_output_is_written(indexed_arguments, poisoned, sizes):
    for dtype in DTYPES:
        for value in results(run_indexed, indexed_arguments(*sizes, dtype=dtype)):
            assert value.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("byte", [127, 128])
def test_scratch_memory_is_written_before_it_is_read(byte):
    """The C library fills what is allocated and freed with this byte and its complement."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("test_kernels.py"))],
        env={**os.environ, "MALLOC_PERTURB_": str(byte)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]


def special_rows(x: Tensor) -> Tensor:
    """Rows of which one number, or all, is NaN or infinite."""
    x = x.detach().clone()
    x[1, 0] = NAN
    x[3, 5] = INF
    x[4, 5] = -INF
    x[6] = NAN
    x[8, 2], x[8, 7] = INF, INF
    x[9, -1], x[9, 0] = -INF, INF
    x[60, 1], x[-1, -1] = INF, NAN
    return x


SPECIAL = [1, 3, 4, 6, 8, 9, 60, 69]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("S", "W", "activation"), [(2, 3, "gelu"), (1, 0, "silu"), (0, 2, "relu"), (1, 2, "tanh"), (2, 0, "gelu")]
)
def test_special_numbers_in_x_give_what_the_reference_gives(tree_arguments, dtype, S, W, activation):
    # Without a base: the kernels do not add it to the leaf first, so that infinity less infinity may arise of the two.
    x, *weights = tree_arguments(D=4, S=S, W=W, base=False, dtype=dtype)
    x = special_rows(x)
    with torch.no_grad():
        y, path = tree_feedforward(x, *weights, activation=activation)
        with use_backend("reference"):
            expected, expected_path = tree_feedforward(x, *weights, activation=activation)
    assert y.isnan().any()
    close = (
        {"equal_nan": True, "rtol": 3e-5, "atol": 1e-5}
        if dtype == torch.float32
        else {"equal_nan": True, "rtol": 0.03, "atol": 0.05}
    )
    same = (path.leaf == expected_path.leaf).all(1)
    assert same[SPECIAL].all()
    assert same.double().mean() > 0.9
    torch.testing.assert_close(path.logits[same], expected_path.logits[same], **close)
    torch.testing.assert_close(y[same], expected[same], **close)
    assert (path.leaf[6] == 0).all()  # NaN goes left all the way
    clean = [i for i in range(70) if i not in SPECIAL]
    alone, _ = tree_feedforward(x[clean], *weights, activation=activation)
    assert torch.equal(y[clean], alone)
    assert alone.isfinite().all()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("S", "W"), [(2, 3), (1, 0)])
def test_a_special_number_spoils_the_gradients_of_its_path_alone(tree_arguments, gradient, S, W):
    arguments = tree_arguments(K=1, D=6, S=S, W=W, base=False)
    arguments[0] = special_rows(arguments[0]).requires_grad_()
    found = results(tree_feedforward, arguments, gradient=gradient)
    with use_backend("reference"):
        expected = results(tree_feedforward, arguments, gradient=gradient)
    y, logits, x, *weights = zip(found, expected, strict=True)
    for f, e in (y, logits, x):
        assert torch.equal(f.isfinite().all(-1), e.isfinite().all(-1))
    for place, (f, e) in enumerate(weights):
        rows = f.isfinite().reshape(*f.shape[:2], -1).all(2)
        assert rows.any()
        assert place > 0 or not rows.all()
        # The reference multiplies what is not finite by the 0 of levels that are not drawn, and b2 by the path weight.
        assert (rows | ~e.isfinite().reshape(*f.shape[:2], -1).all(2)).all()
        if gradient == "none":
            assert torch.equal(rows, e.isfinite().reshape(*f.shape[:2], -1).all(2))


def test_special_numbers_in_weights_give_what_the_reference_gives(tree_arguments):
    for place, value in ((1, NAN), (2, NAN), (2, INF), (2, -INF), (3, NAN), (3, INF)):
        arguments = tree_arguments(D=3)
        with torch.no_grad():
            arguments[place][0, 0] = value
            y, path = tree_feedforward(*arguments)
            with use_backend("reference"):
                expected, expected_path = tree_feedforward(*arguments)
        assert torch.equal(path.leaf, expected_path.leaf)
        if place < 3:
            assert ((path.leaf[:, 0] >= 4) == (value > 0)).all()
        torch.testing.assert_close(path.logits, expected_path.logits, equal_nan=True, rtol=3e-5, atol=1e-5)
        torch.testing.assert_close(y, expected, equal_nan=True, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "identity"])
def test_special_numbers_in_indexed(indexed_arguments, activation):
    arguments = indexed_arguments()
    arguments[0] = special_rows(arguments[0]).requires_grad_()
    found = results(run_indexed, arguments, activation=activation)
    with use_backend("reference"):
        expected = results(run_indexed, arguments, activation=activation)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, equal_nan=True, rtol=3e-5, atol=3e-5)


def test_a_side_that_is_not_taken_may_overflow(tree_arguments):
    """Its weight in the output is 0; in the gradient it counts as nothing, as with the gradient "chosen"."""
    arguments = tree_arguments(K=1, D=1, S=1, W=2, base=False)
    with torch.no_grad():
        arguments[2].fill_(100.0)  # right, all
        arguments[4].b2[0, 0] = INF
        with use_backend("reference"):
            expected, _ = tree_feedforward(*arguments)
    for gradient in ("exact", "sampled"):
        found = results(tree_feedforward, arguments, gradient=gradient)
        torch.testing.assert_close(found[0], expected, rtol=3e-5, atol=1e-4)
        chosen = results(tree_feedforward, arguments, gradient="chosen")
        if gradient == "sampled":
            assert_equal_bits(found, chosen)
        for f, e in zip(found, chosen, strict=True):  # "exact" sums in another order on some processors
            torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)


def test_tree_of_2_to_the_16_neurons(tree_arguments):
    arguments = tree_arguments(500, 3, 5, K=1, D=16, W=1, S=1, base=False)
    found = results(tree_feedforward, arguments, gradient="chosen")
    with use_backend("reference"):
        expected = results(tree_feedforward, arguments, gradient="chosen")
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_tokens(tree_arguments, indexed_arguments, dtype):
    for gradient in GRADIENTS:
        for D in (0, 3):
            y, logits, *grads = results(tree_feedforward, tree_arguments(0, D=D, dtype=dtype), gradient=gradient)
            assert y.shape == (0, 34)
            assert logits.shape == (0, 2, D)
            assert not any(g.count_nonzero() for g in grads)
    y, *grads = results(run_indexed, indexed_arguments(0, dtype=dtype))
    assert y.shape == (0, 34)
    assert not any(g.count_nonzero() for g in grads)
    y, x, w1, b1, w2, b2, gate = results(run_indexed, indexed_arguments(7, 0, dtype=dtype))
    assert gate.shape == (7, 0)
    for v in (y, x, w1, b1, w2, b2):
        assert not v.count_nonzero()


NOTHING = """
import os, sys, torch
from fastff.ops import *
torch.use_deterministic_algorithms(True)  # new memory holds NaN
torch.set_num_threads(1)

def zeros(*shape):
    return torch.zeros(shape, requires_grad=True)

def call(kind, T, I, O, K, S, E, D, W):
    try:
        if kind == "tree":
            leaves = Leaves(zeros(K, 2**D, W, I), zeros(K, 2**D, W), zeros(K, 2**D, W, O), zeros(K, 2**D, O))
            tensors = zeros(T, I), zeros(K, 2**D - 1, I), zeros(K, 2**D - 1), zeros(K, 2**D - 1, 1, O)
            y = tree_feedforward(*tensors, leaves)[0]
        else:
            tensors = zeros(T, I), zeros(E, W, I), zeros(E, W), zeros(E, W, O), zeros(E, O)
            y = indexed_feedforward(tensors[0], torch.zeros(T, S, dtype=torch.int64), *tensors[1:])
    except RuntimeError as error:
        assert "must" in str(error), error
    else:
        y.sum().backward()
        assert y.shape == (T, O)
        assert not y.count_nonzero() and not any(t.grad.isnan().any() for t in tensors), "not all written"

sizes = dict(T=300, I=3, O=4, K=1, S=1, E=3, D=7, W=1)
for kind, nothing in eval(sys.argv[1]):
    child = os.fork()
    if not child:
        call(kind, **{**sizes, **nothing})
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(kind, nothing, flush=True)
"""


def test_a_size_of_zero_works_or_raises():
    cases = [("tree", {name: 0}) for name in "TIOKW"] + [("indexed", {name: 0}) for name in "TIOSW"]
    cases += [("indexed", {"E": 0, "S": 0}), ("tree", {"I": 0, "D": 0})]
    run = subprocess.run([sys.executable, "-c", NOTHING, str(cases)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "", f"crash, garbage, or a message that names no argument: {run.stdout}{run.stderr}"


@pytest.mark.slow
def test_weights_of_more_than_2_to_the_31_elements():
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(memory["MemAvailable"].split()[0])
    if available < 5 * 2**20:  # of the 4.3 GB of weights few are touched, but a system may refuse to promise the rest
        pytest.skip(f"needs 5 GB, {available / 2**20:.1f} GB are free")
    D, I, T, bf16 = 16, 33000, 3, torch.bfloat16
    N = 2**D - 1
    assert N * I > 2**31
    weight = torch.empty(1, N, I, dtype=bf16)  # memory that is never touched takes no room
    out, bias = torch.randn(1, N, 1, 5).to(bf16), torch.full((1, N), -1.0, dtype=bf16)
    bias[0, (N - 1) // 2 :] = 1.0
    x = torch.randn(T, I).to(bf16)
    nodes = torch.zeros(T, D, dtype=torch.int64)
    turns = torch.tensor([[1] * D, [0] * D, [1, 1, 0, 1] * (D // 4)])  # the first goes through the last row of all
    for t in range(T):
        node = 0
        for level in range(D):
            nodes[t, level] = node
            weight[0, node] = 0.0
            bias[0, node] = 0.0
            node = int(2 * node + 1 + turns[t, level])
    for level in range(D):  # a row that leads the tokens that share it as planned
        for node in set(nodes[:, level].tolist()):
            here = [t for t in range(T) if nodes[t, level] == node]
            weight[0, node] = sum((2 * turns[t, level] - 1) * x[t].float() / I for t in here).to(bf16)
    with torch.no_grad():
        y, path = tree_feedforward(x, weight, bias, out)
    assert torch.equal(path.nodes[:, 0], nodes)
    rows = weight[0, nodes.flatten()].view(T, D, I)
    z = torch.einsum("ti,tdi->td", x.double(), rows.double())
    torch.testing.assert_close(path.logits[:, 0].double(), z, rtol=1e-3, atol=1e-3)
    expected = torch.einsum(
        "td,tdo->to", torch.nn.functional.gelu(z), out[0, nodes.flatten(), 0].view(T, D, 5).double()
    )
    torch.testing.assert_close(y.double(), expected, rtol=0.01, atol=0.02)

    weight.requires_grad_()  # its dense gradient would take as much again: rows alone
    x.requires_grad_()
    y, _ = tree_feedforward(x, weight, bias, out, gradient="none", sparse=True)
    found, grad_x = torch.autograd.grad(y.sum(), [weight, x])
    assert set(found._indices()[1].tolist()) == set(nodes.flatten().tolist())
    slope = torch.func.vmap(torch.func.vmap(torch.func.grad(torch.nn.functional.gelu)))(z)
    factor = slope * out[0, nodes.flatten(), 0].view(T, D, 5).double().sum(-1)
    torch.testing.assert_close(grad_x.double(), torch.einsum("td,tdi->ti", factor, rows.double()), rtol=0.02, atol=1e-5)
    last = found._values()[found._indices()[1] == int(nodes[0, -1])][0]
    assert int(nodes[0, -1]) == N - 1
    torch.testing.assert_close(last.double(), factor[0, -1] * x[0].detach().double(), rtol=0.02, atol=1e-3)
