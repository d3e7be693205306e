"""The compiled operators against the reference in float64: forward and every gradient, in every dtype."""

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastff.ops import ACTIVATIONS, GRADIENTS, instruction_set
from fastff.ops import use_backend as backend
from fastff.ops.triton.config import use_config
from kernel_cases import (
    DTYPES,
    F64,
    GATED,
    INDEXED_OPTIONS,
    NODES,
    TREE_OPTIONS,
    Arguments,
    Indexed,
    Result,
    Tree,
    assert_as_exact_as_torch,
    check_indexed,
    check_tree,
    define_indexed,
    define_tree,
    drawn,
    indexed_arguments,
    run_indexed,
    run_tree,
    tree_arguments,
)


@pytest.fixture(autouse=True)
def compiled_kernels(request: pytest.FixtureRequest) -> None:
    """All but the tests of the GPU kernels need them."""
    if instruction_set() is None and "gpu_kernels" not in request.fixturenames:
        pytest.skip("this installation lacks the compiled kernels")


BIG = [
    Tree(300, 768, 768, 1, 12, 0, "one", gradient="none"),
    Tree(3000, 64, 63, 1, 12, 0, "S=2", gradient="exact"),
    Tree(3000, 64, 64, 3, 8, 0, "one", gradient="chosen", dtype=torch.bfloat16),
    Tree(3000, 64, 63, 1, 7, 3, "S=2", True, gradient="sampled", dtype=torch.float16),
]


@pytest.mark.parametrize("case", drawn(Tree, TREE_OPTIONS, 60) + BIG, ids=str)
def test_tree_equals_the_reference(case):
    check_tree(case)


@pytest.mark.parametrize("case", drawn(Tree, TREE_OPTIONS | GATED | {"leaf_rows": (1,)}, 40), ids=str)
def test_gated_leaves_equal_the_reference(case):
    check_tree(case)


@pytest.mark.parametrize("case", drawn(Indexed, INDEXED_OPTIONS | GATED, 40), ids=str)
def test_gated_experts_equal_the_reference(case):
    check_indexed(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [(1, 3), (63, 65), (130, 1000)], ids=str)
def test_compact(dtype, features):
    """What test_instruction_sets runs of each."""
    assert instruction_set() == os.environ.get("FASTFF_INSTRUCTION_SET", instruction_set())
    for activation in ACTIVATIONS:
        check_tree(Tree(70, *features, 2, 4, 3, "S=1", True, activation, dtype=dtype))
        check_indexed(Indexed(70, 2, 5, 3, *features, activation, dtype=dtype))
    check_tree(Tree(70, *features, 2, 4, 3, "none", True, "silu", dtype=dtype, gated=True))
    check_tree(Tree(300, *features, 1, 2, 40, "none", activation="silu", gradient="none", dtype=dtype, gated=True))
    check_indexed(Indexed(70, 2, 5, 3, *features, "silu", dtype=dtype, gated=True))
    check_tree(Tree(300, *features, 1, 8, 1, "S=2", False, gradient="sampled", dropout=0.2, dtype=dtype))


@pytest.mark.parametrize("case", drawn(Indexed, INDEXED_OPTIONS, 40), ids=str)
def test_indexed_equals_the_reference(case):
    check_indexed(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "gated", "bias"), [((70, 130), False, False), ((130, 70), True, True)])
def test_so_many_small_experts_that_columns_are_gone_through_in_blocks(dtype, features, gated, bias):
    check_indexed(Indexed(900, 30, 9000, 1, *features, dtype=dtype, gated=gated, bias=bias))


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
