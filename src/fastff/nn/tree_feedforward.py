"""The recommended tree layer: nodes decide and contribute, leaves compute, hard from the first step."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastff.nn.layer import DEEPEST, one_of, uniform_, whole_number
from fastff.nn.routing import TreeRouting
from fastff.nn.shared import master_leaf, master_shapes, project
from fastff.nn.standardise import Standardise
from fastff.nn.tree_layer import TreeLayer
from fastff.ops import GRADIENTS, Leaves, tree_feedforward

NODE_PARAMETERS = ("node_weight", "node_bias", "node_out")
LEAF_PARAMETERS = ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")


class TreeFeedForward(TreeLayer):
    """Sum of K trees whose nodes decide and contribute and whose leaves are feedforward networks.

    The same hard function in training and inference, so nothing is lost by hardening; the decisions learn by the
    straight-through gradient (`fastff.ops.tree_feedforward`), at a cost of the order of the path in training too.
    For all of it call `fastff.start_growth` before training, `fastff.grow` and a `balance` loss while training, and
    `fastff.merge_base` after it.

    Args:
        in_features, out_features: sizes of the last dimension of input and output (out_features None: the same).
        depth: levels of nodes, 0 or more; 2^depth leaves a tree.
        leaf_width: hidden neurons of a leaf.
        trees: K.
        activation: a key of `fastff.ops.ACTIVATIONS`, of one-sided neurons.
        gradient: of the decisions in training (in eval mode it is "none"): "exact" (straight-through; depth + 1 leaves
            a token and tree), "sampled" (one level a token at random, times depth: unbiased; 2 leaves), "chosen"
            (without the side not taken; 1 leaf), "none".
        rank: R; decisions and leaves see LayerNorm(P x), P (R, in) one projection for all trees, in place of x. A
            neuron then reads R weights and one output row, so it costs about half, and a decision next to nothing.
            None: they see x.
        contributing: whether nodes add to the output. If not, leaves alone do, and a path that costs little is free to
            be deep: with `rank`, trees of many leaves run one output row for each of their leaves' neurons.
        master_width: neurons of a master leaf: a dense layer beside the trees, with `activation` and no output bias, of
            which every token runs all.
        leaf_bias: whether a leaf has an output bias of its own, which is one more row for a token to read.
        gated: whether leaves have the neurons of recent language models (SwiGLU with activation "silu", Shazeer 2020):
            neuron w is activation(z_w) * z_(W + w), which costs one row in more. Only where nodes do not contribute;
            such leaves have one output row a neuron.
        two_sided: a neuron, of a node or a leaf, has two output rows and adds relu(z) times the right or relu(-z) times
            the left; otherwise one row, and adds activation(z) times it. The executed cost is the same.
        shared_base: in training a leaf is base + offset, with one base for all leaves of a tree, so that what one
            leaf learns serves its neighbours. Until `merge_base` adds the base in, a token runs the base's hidden
            neurons beside its leaf's (on the reference backend each forward adds it to all leaves); after it
            nothing: merge before inference. A single leaf (depth 0) has no base, which would double its learning rate.
        standardise: whether nodes and leaves see features less their running mean over tokens, by their running
            deviation, or without a rank by one deviation for all features (`fastff.nn.standardise`). Where tokens look
            alike, as all do early in a language model, decisions tell them apart only then. `merge_base` works it into
            weights and biases.
        sparse: whether gradients of nodes and leaves are sparse tensors of the rows that tokens passed, as of
            `nn.Embedding(sparse=True)`; for `fastff.optim.RowwiseAdamW`. The compiled CPU kernels make them; elsewhere
            gradients are dense.
        device, dtype: of the parameters.

    Parameters (N = 2^depth - 1, L = 2^depth, W leaf_width, M master_width, S = 2 if two_sided else 1, R = rank or in):
    node_weight (K, N, R), node_bias (K, N), node_out (K, N, S, out) if contributing, leaf_w1 (K, L, W, R),
    leaf_b1 (K, L, W), if gated with 2 W in place of W, leaf_w2 (K, L, W, 2, out) if two_sided else (K, L, W, out),
    leaf_b2 (K, L, out) if leaf_bias,
    projection (R, in) if rank, master_w1 (M, in), master_b1 (M,) and master_w2 (M, out) if master_width, and with
    shared_base for each of the leaves' a base_... with 1 in place of L, the leaf's own then being an offset that starts
    at 0. Initialised uniform(+-1/sqrt(R)), what leads to the output uniform(+-1/sqrt(n)) with n the neurons of a token
    that do, as a dense layer of that width; the projection normal with deviation 1/sqrt(in).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    node_weight: nn.Parameter
    node_bias: nn.Parameter
    leaf_w1: nn.Parameter
    leaf_b1: nn.Parameter
    projection: nn.Parameter  # if there is a rank
    standard: Standardise | None
    levels: int  # of nodes in use: depth, but for a tree that grows (`fastff.start_growth`)

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        depth: int,
        leaf_width: int,
        trees: int = 1,
        activation: str = "gelu",
        gradient: str = "exact",
        rank: int | None = None,
        contributing: bool = True,
        master_width: int = 0,
        leaf_bias: bool = True,
        gated: bool = False,
        two_sided: bool = True,
        shared_base: bool = True,
        standardise: bool = False,
        sparse: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, activation)
        self.depth = self.levels = whole_number("depth", depth, 0, DEEPEST)
        self.leaf_width = whole_number("leaf_width", leaf_width, 1)
        self.trees = whole_number("trees", trees, 1)
        self.gradient = one_of("gradient", gradient, GRADIENTS)
        self.rank = None if rank is None else whole_number("rank", rank, 1)
        self.contributing = one_of("contributing", contributing, (True, False))
        self.master_width = whole_number("master_width", master_width, 0)
        self.leaf_bias = one_of("leaf_bias", leaf_bias, (True, False))
        self.gated = one_of("gated", gated, (True, False))
        if self.gated and self.contributing:
            raise ValueError("gated leaves need contributing=False: nodes have no gate")
        self.two_sided = one_of("two_sided", two_sided, (True, False)) and not self.gated
        self.shared_base = one_of("shared_base", shared_base, (True, False)) and self.depth > 0
        self.sparse = one_of("sparse", sparse, (True, False))
        K, N, L, W, S = self.trees, 2**self.depth - 1, 2**self.depth, self.leaf_width, 2 if self.two_sided else 1
        I, O, H = self.in_features, self.out_features, 2 * W if self.gated else W
        R = self.rank or I
        standardise = one_of("standardise", standardise, (True, False))
        self.standard = Standardise(R, alike=self.rank is None, device=device) if standardise else None
        shapes: dict[str, tuple[int, ...]] = {
            "node_weight": (K, N, R),
            "node_bias": (K, N),
            **({"node_out": (K, N, S, O)} if contributing else {}),
            "leaf_w1": (K, L, H, R),
            "leaf_b1": (K, L, H),
            "leaf_w2": (K, L, W, S, O) if self.two_sided else (K, L, W, O),
            **({"leaf_b2": (K, L, O)} if leaf_bias else {}),
            **({"projection": (R, I)} if self.rank else {}),
            **master_shapes(self.master_width, I, O),
        }
        if self.shared_base:
            shapes |= {_base(name): (K, 1, *shapes[name][2:]) for name in LEAF_PARAMETERS if name in shapes}
        self._register(shapes, device, dtype)
        self.register_state_dict_post_hook(_whole_tree)

    @property
    def zero_parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.leaf_parameters if self.shared_base else ()  # offsets from the base

    def reset_parameters(self) -> None:
        """Initialise anew."""
        if self.standard:
            self.standard.reset_parameters()
        with torch.no_grad():
            for name, p in self.named_parameters():
                if name in self.zero_parameters:
                    p.zero_()
                elif name == "projection":
                    p.normal_(0, self.in_features**-0.5)
                elif name.endswith(("out", "w2", "b2")):
                    uniform_(p, self.inference_width - self.trees * (0 if self.contributing else self.depth))
                elif name.startswith("master"):
                    uniform_(p, self.in_features)
                else:
                    uniform_(p, self.rank or self.in_features)

    @property
    def training_width(self) -> int:
        """Neurons of all trees that put something out: trees * (2^depth - 1 + 2^depth * leaf_width), or the leaves'."""
        nodes = 2**self.depth - 1 if self.contributing else 0
        return self.trees * (nodes + 2**self.depth * self.leaf_width) + self.master_width

    @property
    def inference_width(self) -> int:
        """Neurons that one token runs: trees * (depth + leaf_width) + master_width."""
        return self.trees * (self.depth + self.leaf_width) + self.master_width

    def multiply_adds(self, *, training: bool) -> int:
        """In training with the other sides that the gradient of the decisions follows."""
        D, W = self.depth, self.leaf_width
        other_nodes, other_leaves = {"exact": (D * (D - 1) // 2, D), "sampled": (D - 1, 1)}.get(self.gradient, (0, 0))
        I, O, R = self.in_features, self.out_features, self.rank or self.in_features
        nodes, leaves = (D + other_nodes, 1 + other_leaves) if training and D else (D, 1)
        own = nodes * (R + O * self.contributing) + leaves * W * ((1 + self.gated) * R + O)
        return self.trees * own + (R * I if self.rank else 0) + self.master_width * (I + O)

    @property
    def merged(self) -> bool:
        """Whether nothing is left that training alone needs, as after `merge_base`."""
        return not self.shared_base and self.standard is None

    def merge_base(self) -> None:
        """Work what training alone needs into nodes and leaves, in place: the shared base, and `standardise`.

        The same function, fewer parameters; but it would not train on as before.
        """
        with torch.no_grad():
            if self.shared_base:
                for name in self.leaf_parameters:
                    getattr(self, name).add_(getattr(self, _base(name)))
                    delattr(self, _base(name))
                self.parameter_names = tuple(name for name in self.parameter_names if not name.startswith("base"))
                self.shared_base = False
            if self.standard:
                scale_R, shift_R = self.standard.scale_and_shift()
                for weight, bias in ((self.node_weight, self.node_bias), (self.leaf_w1, self.leaf_b1)):
                    bias.add_((weight * shift_R).sum(-1))
                    weight.mul_(scale_R)
                self.standard = None

    def forward_tokens(
        self,
        x: Tensor,
        node_weight: Tensor,
        node_bias: Tensor,
        node_out: Tensor | None = None,
        projection: Tensor | None = None,
        master_w1: Tensor | None = None,
        master_b1: Tensor | None = None,
        master_w2: Tensor | None = None,
        **leaf: Tensor,
    ) -> Tensor:
        own = _leaves(leaf, LEAF_PARAMETERS)
        base = _leaves(leaf, map(_base, LEAF_PARAMETERS)) if self.shared_base else None
        if self.levels < self.depth:
            if node_out is None:
                L, N = 2**self.levels, 2**self.levels - 1
                node_weight, node_bias, own = node_weight[:, :N], node_bias[:, :N], first_leaves(own, L)
            else:
                node_weight, node_bias, node_out, own = self._smaller_tree(node_weight, node_bias, node_out, own, base)
                base = None
        y, path = tree_feedforward(
            self._seen(x, projection),
            node_weight,
            node_bias,
            node_out,
            own,
            base,
            activation=self.activation,
            gradient=self.gradient if self.training else "none",
            sparse=self.sparse and self.levels == self.depth,
        )
        self._remember(*path)
        if master_w1 is not None and master_b1 is not None and master_w2 is not None:
            y = y + master_leaf(x, master_w1, master_b1, master_w2, self.activation)
        return y

    def _smaller_tree(
        self, node_weight: Tensor, node_bias: Tensor, node_out: Tensor, own: Leaves, base: Leaves | None
    ) -> tuple[Tensor, Tensor, Tensor, Leaves]:
        """The tree of the levels that decide so far: the nodes of the others are neurons of its leaves."""
        L, N = 2**self.levels, 2**self.levels - 1
        own = first_leaves(own, L)
        if base is not None:
            own = own.plus(base)
        w1, b1, w2 = [own.w1], [own.b1], [own.w2]
        for level in range(self.levels, self.depth):
            rows = slice(2**level - 1, 2**level - 1 + L)
            w1.append(node_weight[:, rows].unsqueeze(2))
            b1.append(node_bias[:, rows].unsqueeze(2))
            w2.append(node_out[:, rows].unsqueeze(2) if self.two_sided else node_out[:, rows])
        leaves = Leaves(torch.cat(w1, dim=2), torch.cat(b1, dim=2), torch.cat(w2, dim=2), own.b2)
        return node_weight[:, :N], node_bias[:, :N], node_out[:, :N], leaves

    def rows_by_level(self) -> Iterator[tuple[str, int, int]]:
        """Parameter, level and first row of the nodes of each level, and of the leaves, whose level is the depth.

        Of 2^level rows a tree that grows uses 2^min(level, levels), the first ones: one for each of its leaves.
        """
        for level in range(self.depth if self.contributing else 0):
            for name in NODE_PARAMETERS:
                yield name, level, 2**level - 1
        for name in self.leaf_parameters:
            yield name, self.depth, 0

    @property
    def leaf_parameters(self) -> tuple[str, ...]:
        """Names of those of leaves that the layer has."""
        return tuple(name for name in LEAF_PARAMETERS if self.leaf_bias or name != "leaf_b2")

    def _routing(self, logits: Tensor, leaf: Tensor) -> TreeRouting:
        return TreeRouting(logits, leaf, 2**self.levels - 1, 2**self.levels, soft=False)

    def decisions(self) -> tuple[Tensor, Tensor]:
        return self.node_weight, self.node_bias

    def seen(self, x: Tensor) -> Tensor:
        return self._seen(x, None if self.rank is None else self.projection.to(x.dtype))

    def _seen(self, x: Tensor, projection: Tensor | None) -> Tensor:
        seen = x if projection is None else project(x, projection)
        return seen if self.standard is None else self.standard(seen)

    def tree_weights(self) -> dict[str, Tensor | Leaves | None]:
        if self.levels < self.depth:
            grown = f"{self.depth}, before it is quantised, has {self.levels}"
            raise ValueError(f"a tree must have grown to its depth, {grown}")
        self.merge_base()
        own = {name: getattr(self, name) for name in self.parameter_names}
        nodes = {name: own.get(name) for name in (*NODE_PARAMETERS, "projection")}
        master = Leaves(own["master_w1"], own["master_b1"], own["master_w2"]) if self.master_width else None
        return nodes | {"leaves": _leaves(own, LEAF_PARAMETERS), "master": master}

    def block_counts(self) -> dict[str, Tensor]:
        used = self.routing.leaf_counts  # by the rows in use of each level that does not decide, and of the leaves
        if not self.contributing:  # nodes that do not decide yet are not in use
            nodes = F.pad(self.routing.path_counts, (0, 2**self.depth - 2**self.levels))
            leaves = F.pad(used, (0, 2**self.depth - used.shape[1]))
            return dict.fromkeys(NODE_PARAMETERS[:2], nodes) | dict.fromkeys(self.leaf_parameters, leaves)
        *waiting, leaves = (F.pad(used, (0, 2**level - used.shape[1])) for level in range(self.levels, self.depth + 1))
        nodes = torch.cat([self.routing.path_counts, *waiting], dim=1)
        return dict.fromkeys(NODE_PARAMETERS, nodes) | dict.fromkeys(self.leaf_parameters, leaves)

    def extra_repr(self) -> str:
        usual = {"rank": None, "contributing": True, "master_width": 0, "leaf_bias": True, "gated": False}
        given = {name: getattr(self, name) for name in usual}
        more = "".join(f", {name}={value}" for name, value in given.items() if value != usual[name])
        return (
            f"{self.in_features}, {self.out_features}, depth={self.depth}, leaf_width={self.leaf_width}, "
            f"trees={self.trees}, activation={self.activation!r}, gradient={self.gradient!r}, "
            f"two_sided={self.two_sided}, shared_base={self.shared_base}{more}"
            f"{', standardise=True' if self.standard else ''}"
        )


def _whole_tree(layer: TreeFeedForward, state: dict[str, Any], prefix: str, _: Any) -> None:
    """In what is saved of a tree that has not grown to its depth, a row stands wherever it will be copied to."""
    if layer.levels == layer.depth:
        return
    used = 2**layer.levels
    for name in {name for name, _, _ in layer.rows_by_level()}:
        state[prefix + name] = state[prefix + name].clone()
    for name, level, first in layer.rows_by_level():
        if level > layer.levels:
            repeat_rows(here(state[prefix + name])[:, first : first + 2**level], used)


def here(parameter: Tensor) -> Tensor:
    """What this process has of a parameter (K, rows, ...), in the same memory; FSDP2 gives each some of the K trees.

    Raises:
        ValueError: the parameter is sharded otherwise.
    """
    shards: Any = parameter.detach()
    if not hasattr(shards, "to_local"):  # no DTensor, which takes a second to import
        return shards
    if any(placement.is_shard() and not placement.is_shard(0) for placement in shards.placements):
        raise ValueError(f"parameters of a tree that grows must be sharded in dimension 0, got {shards.placements}")
    return shards.to_local()


def repeat_rows(rows: Tensor, used: int) -> None:
    """Let all of `rows` (K, rows, ...) be copies of the first `used` of them, those of one side by side, in place."""
    rows.copy_(rows[:, :used].repeat_interleave(rows.shape[1] // used, dim=1))


def merge_base(model: nn.Module) -> nn.Module:
    """Call `merge_base` of every `TreeFeedForward` in `model`, in place; returns `model`."""
    for module in model.modules():
        if isinstance(module, TreeFeedForward):
            module.merge_base()
    return model


def _leaves(given: dict[str, Tensor], names: Iterable[str]) -> Leaves:
    """Of the parameters of these names; the last, output biases, may not be there."""
    w1, b1, w2, b2 = names
    return Leaves(given[w1], given[b1], given[w2], given.get(b2))


def first_leaves(leaves: Leaves, count: int) -> Leaves:
    """The first `count` of each tree."""
    return Leaves(*(None if t is None else t[:, :count] for t in leaves))  # type: ignore[arg-type]


def _base(name: str) -> str:
    return name.replace("leaf", "base")
