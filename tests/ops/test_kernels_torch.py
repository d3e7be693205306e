"""The compiled operators under opcheck, torch.compile, torch.export and twice differentiated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fastff.nn import MoE, TreeFeedForward, UltraFFF
from fastff.ops import ACTIVATIONS, GRADIENTS, indexed_feedforward, instruction_set, tree_feedforward, use_backend

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

ops = torch.ops.fastff
NAMES = ("x", "node_weight", "node_bias", "node_out", "w1", "b1", "w2", "b2")
NAMES += ("base_w1", "base_b1", "base_w2", "base_b2")
TREES = [
    ({}, {"gradient": 3}),
    ({"S": 1, "W": 0, "K": 1, "T": 1}, {"gradient": 1}),
    ({"S": 0, "base": False, "T": 0}, {"gradient": 2}),
    ({"D": 0, "base": False}, {"gradient": 0, "activation": 0}),
    ({"dtype": torch.bfloat16}, {"gradient": 2, "mask": True, "activation": 2}),
    ({"dtype": torch.float16, "S": 1}, {"gradient": 3}),
]


def named(op: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of an operator by their names in its schema."""
    return tuple(given[a.name] for a in op.default._schema.arguments)


def all_arguments(arguments: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    x, weight, bias, out, leaves, base = arguments
    tensors = [x, weight, bias, out, *(leaves or [None] * 4), *(base or [None] * 4)]
    T, K, W = x.shape[0], weight.shape[0], 0 if leaves is None else leaves.b1.shape[2]
    given = {"activation": 1, "needs": 2**12 - 1, "rows": False, "sparse": False, "keep_hidden": True, **options}
    given |= dict(zip(NAMES, tensors, strict=True))
    given["weights"] = [t for t in tensors[1:] if t is not None]
    given["mask"] = torch.full((T, K, W), 1.5, dtype=x.dtype) if options.get("mask") else None
    depth = (weight.shape[1] + 1).bit_length() - 1
    given["levels"] = torch.randint(depth, (T, K)) if options["gradient"] == 2 else None
    return given


@pytest.mark.parametrize(
    ("sizes", "options"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i != 4 else []) for i, case in enumerate(TREES)],
    ids=str,
)
def test_tree_operators_pass_opcheck(tree_arguments, sizes, options):
    given = all_arguments(tree_arguments(**{"T": 9, **sizes}), options)
    torch.library.opcheck(ops.tree, named(ops.tree, given))
    with torch.no_grad():
        fixed = {name: t.detach() if isinstance(t, Tensor) else t for name, t in given.items()}
        fixed["weights"] = [t.detach() for t in given["weights"]]
        torch.library.opcheck(ops.tree_infer, named(ops.tree_infer, fixed))
        y, logits, leaf, hidden = ops.tree(*named(ops.tree, fixed))
        back = {**fixed, "grad_y": torch.ones_like(y), "logits": logits, "leaf": leaf, "hidden": hidden}
        for grad_logits, needs in ((None, 2**12 - 1), (torch.ones_like(logits), 0b101010101010), (None, 1)):
            inputs = {**back, "grad_logits": grad_logits, "needs": needs}
            torch.library.opcheck(ops.tree_backward, named(ops.tree_backward, inputs))


@pytest.mark.parametrize(
    "sizes",
    [
        {"S": 1, "dtype": torch.bfloat16},
        *[pytest.param(s, marks=pytest.mark.slow) for s in ({}, {"T": 0}, {"dtype": torch.float16})],
    ],
    ids=str,
)
@pytest.mark.parametrize("full", [True, False])
def test_indexed_operators_pass_opcheck(indexed_arguments, sizes, full):
    x, index, *weights, gate = indexed_arguments(**{"T": 9, **sizes})
    mask = torch.full((*index.shape, weights[0].shape[1]), 1.5, dtype=x.dtype) if full else None
    given = dict(zip(("x", "index", *NAMES[4:8], "gate"), (x, index, *weights, gate if full else None), strict=True))
    given |= {"mask": mask, "activation": 1, "keep_hidden": True}
    torch.library.opcheck(ops.indexed, named(ops.indexed, given))
    with torch.no_grad():
        fixed = {name: t.detach() if isinstance(t, Tensor) else t for name, t in given.items()}
        y, hidden = ops.indexed(*named(ops.indexed, fixed))
        for needs in (63 if full else 31, 0b00101, 0):
            back = {**fixed, "grad_y": torch.ones_like(y), "hidden": hidden, "needs": needs}
            torch.library.opcheck(ops.indexed_backward, named(ops.indexed_backward, back))


def values_and_gradients(run: Callable[..., Any], arguments: Any) -> list[Tensor]:
    out = run(*arguments)
    outputs = [out] if isinstance(out, Tensor) else [out[0], out[1].logits]
    loss = sum(o.float().square().sum() for o in outputs)
    inputs = [t for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, inputs)]


def assert_compiles(run: Callable[..., Any], arguments: Any, backend: str, operator: str) -> None:
    """As one graph that holds the operator, forward and backward."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def compile_as(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(run, backend=compile_as, fullgraph=True)
    for f, e in zip(values_and_gradients(compiled, arguments), values_and_gradients(run, arguments), strict=True):
        torch.testing.assert_close(f, e)
    with torch.no_grad():
        torch.testing.assert_close(tree_leaves(compiled(*arguments))[0], tree_leaves(run(*arguments))[0])
    for graph in graphs:
        assert any(operator in str(node.target) for node in graph.graph.nodes), graph


@pytest.mark.parametrize("gradient", ["none", "exact"])
def test_tree_compiles_as_one_graph(tree_arguments, gradient):
    arguments = tree_arguments()
    assert_compiles(lambda *a: tree_feedforward(*a, gradient=gradient), arguments, "aot_eager", "fastff.tree")


def test_indexed_compiles_as_one_graph(indexed_arguments):
    *arguments, gate = indexed_arguments()
    arguments = [*arguments, gate]
    assert_compiles(lambda *a: indexed_feedforward(*a[:6], gate=a[6]), arguments, "aot_eager", "fastff.indexed")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inductor_equals_eager(tree_arguments, indexed_arguments, dtype):
    arguments = tree_arguments(dtype=dtype)
    for gradient in ("none", "chosen", "exact"):
        run = lambda *a, gradient=gradient: tree_feedforward(*a, gradient=gradient)  # noqa: E731
        assert_compiles(run, arguments, "inductor", "fastff.tree")
    run = lambda *a: indexed_feedforward(*a[:6], gate=a[6])  # noqa: E731
    assert_compiles(run, indexed_arguments(dtype=dtype), "inductor", "fastff.indexed")


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ultra": lambda: UltraFFF(33, 20, depth=4, trees=2),
    "tree": lambda: TreeFeedForward(33, 20, depth=3, leaf_width=2),
    "moe": lambda: MoE(33, 20, experts=4, expert_width=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_autocast_compile_and_export(name):
    layer = LAYERS[name]().eval()
    x = torch.randn(40, 33)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), expected)
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("tokens", min=2)},))
        graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]  # autocast nests them
        assert any("fastff." in str(node.target) for graph in graphs for node in graph.nodes)
        for tokens in (2, 40):
            torch.testing.assert_close(program.module()(x[:tokens]), expected[:tokens])
    assert expected.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_an_exported_layer_is_saved_and_loaded(name, tmp_path):
    layer = LAYERS[name]().eval()
    x = torch.randn(40, 33)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "layer.pt2").module()(x), layer(x))


def second_gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of a sum of all first gradients, each weighed differently: gradients by inputs and by what came in."""
    torch.manual_seed(5)
    y = run()
    u = torch.randn_like(y).requires_grad_()
    first = torch.autograd.grad(y, inputs, u, create_graph=True)
    loss = sum((g.double() * torch.randn(g.shape, dtype=torch.float64)).sum() for g in first)
    second = torch.autograd.grad(loss, [*inputs, u], allow_unused=True, materialize_grads=True)
    return [*first, *second]


def assert_second_gradients(run: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Those of the kernels equal those of the reference."""
    found = second_gradients(run, inputs)
    with use_backend("reference"):
        expected = second_gradients(run, inputs)
    assert any(g.count_nonzero() for g in found[len(inputs) :])
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("S", "W", "activation"), [(2, 3, "gelu"), (1, 0, "tanh"), (1, 2, "silu")])
def test_second_gradients_of_the_tree_equal_the_reference(tree_arguments, gradient, S, W, activation):
    arguments = tree_arguments(T=20, S=S, W=W)
    inputs = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]

    def run() -> Tensor:
        torch.manual_seed(6)
        y, path = tree_feedforward(*arguments, activation=activation, gradient=gradient)
        return y + path.logits.square().sum((1, 2)).unsqueeze(1)

    assert_second_gradients(run, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_gradients_of_indexed_equal_the_reference(indexed_arguments, activation):
    *arguments, gate = indexed_arguments(T=20)
    inputs = [t for t in (*arguments, gate) if t.requires_grad]

    def run() -> Tensor:
        return indexed_feedforward(*arguments, gate=gate, activation=activation)

    assert_second_gradients(run, inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_second_gradients_of_layers_equal_the_reference(name):
    layer = LAYERS[name]()  # an expert's gate is computed from the tokens that it weighs
    inputs = [torch.randn(20, 33, requires_grad=True), *layer.parameters()]

    def run() -> Tensor:
        torch.manual_seed(6)
        return layer(inputs[0])

    assert_second_gradients(run, inputs)


def test_second_gradients_of_a_tree_whose_rows_are_computed_from_its_tokens(tree_arguments):
    x, weight, bias, out, *blocks = tree_arguments(T=20)

    def run() -> Tensor:
        scale = x.mean()
        y, _ = tree_feedforward(x, weight * scale, bias, out * scale, *blocks, activation="gelu", gradient="exact")
        return y

    assert_second_gradients(run, [x, weight, out])


@pytest.mark.slow
def test_sparse_gradients_are_dense_where_the_layer_is_compiled():
    layer = TreeFeedForward(6, depth=3, leaf_width=2, sparse=True)
    x = torch.randn(9, 6)
    layer(x).square().sum().backward()
    expected = {name: p.grad.to_dense() for name, p in layer.named_parameters()}
    assert any(p.grad.is_sparse for p in layer.parameters())
    layer.zero_grad()
    torch.compile(layer, fullgraph=True)(x).square().sum().backward()
    for name, p in layer.named_parameters():
        assert not p.grad.is_sparse
        torch.testing.assert_close(p.grad, expected[name])
