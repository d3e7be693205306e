"""Wrong arguments of the compiled operators raise, naming the argument, before any memory is touched."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves

from fastff.ops import indexed_feedforward, instruction_set, tree_feedforward

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

OPERATORS = ("tree", "tree_infer", "tree_backward", "indexed", "indexed_backward")
tree, tree_infer, tree_backward, indexed, indexed_backward = (getattr(torch.ops.fastff, name) for name in OPERATORS)
LEAVES = ("w1", "b1", "w2", "b2")
BASE = tuple(f"base_{name}" for name in LEAVES)
TREE = ("x", "node_weight", "node_bias", "node_out", *LEAVES, *BASE)
OPTIONS = {"activation": 1, "gradient": 2, "needs": 2**12 - 1, "keep_hidden": True, "sparse": False, "rows": False}


class Call(NamedTuple):
    """An operator and arguments by name, which are right."""

    op: Any
    right: dict[str, Any]

    def __call__(self, **changes: Any) -> Any:
        given = {**OPTIONS, **self.right, **changes}
        given["weights"] = [given[name] for name in TREE[1:] if given.get(name) is not None]
        return self.op(*(given[a.name] for a in self.op.default._schema.arguments))

    @property
    def names(self) -> list[str]:
        """Of the tensors that it reads."""
        takes = {a.name for a in self.op.default._schema.arguments}
        reads = takes if "weights" not in takes else {*TREE}
        return [name for name in self.right if name in reads and not (self.op is tree and name == "levels")]


@pytest.fixture
def calls(tree_arguments, indexed_arguments) -> list[Call]:
    """Of the tree forward, inference and backward; of the indexed feedforward forward and backward."""
    t = dict(zip(TREE, (a.detach() for a in tree_leaves(tree_arguments())), strict=True))
    t |= {"mask": torch.ones(70, 2, 3), "levels": torch.zeros(70, 2, dtype=torch.int64)}
    y, logits, leaf, hidden = Call(tree, t)()
    back = {**t, "grad_y": y, "grad_logits": logits, "logits": logits, "leaf": leaf, "hidden": hidden}
    i = dict(zip(("x", "index", *LEAVES, "gate"), (a.detach() for a in indexed_arguments()), strict=True))
    i["mask"] = torch.ones(70, 2, 3)
    z, active = Call(indexed, i)()
    given = [Call(tree, t), Call(tree_infer, t), Call(tree_backward, back), Call(indexed, i)]
    given.append(Call(indexed_backward, {**i, "grad_y": z, "hidden": active}))
    for call in given:
        call()
    return given


def test_an_argument_of_another_dtype_raises_and_is_named(calls):
    for call in calls:
        for name in call.names:
            t = call.right[name]
            for dtype in (torch.float64, torch.int32) if t.dtype == torch.int64 else (torch.float64, torch.bfloat16):
                # Where x alone is low precision, the first that disagrees with it is named, which is as good.
                named = r"\w+" if name == "x" and dtype == torch.bfloat16 else name
                with pytest.raises(RuntimeError, match=rf"\b{named} must be \w+.*, got \w+"):
                    call(**{name: t.to(dtype)})


def test_an_argument_of_another_shape_raises_and_is_named(calls):
    for call in calls:
        for name in call.names:
            t = call.right[name]
            along = [(d, (slice(None),) * d + (slice(1),)) for d in range(t.dim())]
            changed = [t[first] for _, first in along] + [torch.cat([t, t[first]], d) for d, first in along]
            for wrong in (*changed, t[0], t.unsqueeze(0)):
                if wrong.shape == t.shape or (name == "node_out" and wrong.shape[2:] == (1, t.shape[3])):
                    continue  # one output row a node is right too
                if call.op is tree_infer and name == "x" and wrong.shape[1:] == t.shape[1:]:
                    continue  # nothing else has a size T
                with pytest.raises(RuntimeError, match="must|complete binary tree") as raised:
                    call(**{name: wrong})
                others = ("x", "index", "w1", "w2", "node_weight", "node_out")  # other sizes are taken from these
                assert name in str(raised.value) or name in others, (name, str(raised.value))


def test_an_argument_on_another_device_raises(calls):
    """Not the fake's answer, which would be memory that nobody fills."""
    for call in (calls[0], calls[1], calls[3]):
        for name in call.names:
            with pytest.raises((RuntimeError, NotImplementedError, ValueError), match="CPU|meta|device"):
                call(**{name: call.right[name].to("meta")})


def test_values_out_of_range_raise_and_are_named(calls):
    for call in calls:
        limits = {"leaf": 8, "levels": 3, "index": 5}
        for name in set(limits) & set(call.names):
            for value in (-1, limits[name], 2**40, -(2**63)):
                wrong = call.right[name].clone()
                wrong[-1, -1] = value
                with pytest.raises(RuntimeError, match=f"{name} must hold values from 0 to {limits[name] - 1}"):
                    call(**{name: wrong})
        for activation in (-1, 5, 2**40):
            with pytest.raises(RuntimeError, match="activation must be from 0 to 4, got"):
                call(activation=activation)
    for gradient in (-1, 4):
        with pytest.raises(RuntimeError, match="gradient must be from 0 to 3, got"):
            calls[2](gradient=gradient)


def test_a_part_that_is_missing_raises_and_is_named(calls):
    for call in (calls[0], calls[2]):
        for name in (*LEAVES, *BASE):
            with pytest.raises(RuntimeError, match="must be given together"):
                call(**{name: None})
        with pytest.raises(RuntimeError, match="node_out or leaves must be given"):
            call(**dict.fromkeys(("node_out", *LEAVES)))
        with pytest.raises(RuntimeError, match="a base needs leaves"):
            call(**dict.fromkeys((*LEAVES, "mask")))
    with pytest.raises(RuntimeError, match="levels must be given"):
        calls[2](levels=None)
    for name in ("node_weight", "node_bias", *LEAVES, *BASE):  # told by their number, or by shapes that do not fit
        with pytest.raises(RuntimeError, match="must"):
            calls[1](**{name: None})
    for count in (0, 1, 2, 4, 7, 9, 12, 15):
        with pytest.raises(RuntimeError, match=f"weights must be.*got {count}"):
            tree_infer(calls[1].right["x"], [torch.zeros(2, 7, 33)] * count, 0)


def test_nodes_of_no_complete_tree_raise(calls):
    for call in calls[:3]:
        for count in (2, 4, 5, 6, 8):
            with pytest.raises(RuntimeError, match=f"2\\^depth - 1 nodes, got {count}"):
                call(node_weight=torch.zeros(2, count, 33), node_bias=torch.zeros(2, count))
        with pytest.raises(RuntimeError, match="node_out must be of shape"):  # depth 0, which the rest does not fit
            call(node_weight=torch.zeros(2, 0, 33), node_bias=torch.zeros(2, 0))


def test_public_functions_name_what_is_wrong(tree_arguments, indexed_arguments):
    x, *weights = tree_arguments()
    with pytest.raises(RuntimeError, match=r"node_weight must be of shape \(2, 7, 32\), got \(2, 7, 33\)"):
        tree_feedforward(x[:, :32], *weights)
    with pytest.raises(RuntimeError, match="node_weight must be BFloat16, got Float"):
        tree_feedforward(x.bfloat16(), *weights)
    x, index, *others, _ = indexed_arguments()
    with pytest.raises(RuntimeError, match="index must be Long, got Int"):
        indexed_feedforward(x, index.int(), *others)
    with pytest.raises(RuntimeError, match="index must hold values from 0 to 4, got values from 0 to 5"):
        indexed_feedforward(x, index.fill_(5), *others)
