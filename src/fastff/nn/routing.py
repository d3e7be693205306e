"""What a layer's last forward decided: node entropies, leaf usage, and the losses made of them."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fastff.ops.descend import global_rows
from fastff.ops.leaf_probabilities import leaf_probabilities
from fastff.ops.tree.reference import nodes_above


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of Bernoulli(sigmoid(logit)), elementwise; at most log 2."""
    p = torch.sigmoid(logits)
    return torch.nn.functional.softplus(logits) - logits * p


def squared_coefficient_of_variation(load: Tensor) -> Tensor:
    """Variance over squared mean of a vector (Shazeer et al., section 4): 0 where all experts bear the same load."""
    mean = load.float().mean()
    return load.float().var(unbiased=False) / (mean * mean).clamp_min(1e-10)


@dataclass(frozen=True)
class TreeRouting:
    """The decisions of a tree layer in its last forward, kept with their graph while training.

    Attributes:
        logits: (T, K, M) of the nodes that were evaluated: the path (M = depth), or in soft routing all (M = N).
        leaf: (T, K) int64, the leaf of the hard path.
        nodes_per_tree, leaves_per_tree: N and L.
        soft: whether all nodes were evaluated and weigh every leaf by its probability.
    """

    logits: Tensor
    leaf: Tensor
    nodes_per_tree: int
    leaves_per_tree: int
    soft: bool

    @property
    def nodes(self) -> Tensor:
        """(T, K, M) int64: the nodes that were evaluated, numbered breadth first."""
        if self.soft:
            return torch.arange(self.nodes_per_tree, device=self.leaf.device).expand_as(self.logits)
        return nodes_above(self.leaf, self.logits.shape[-1])

    @property
    def node_counts(self) -> Tensor:
        """(K, N) int64: the tokens that each node decided."""
        return _count(self.nodes, self.nodes_per_tree)

    @property
    def leaf_counts(self) -> Tensor:
        """(K, L) int64: the tokens whose hard path ends in each leaf."""
        return _count(self.leaf.unsqueeze(-1), self.leaves_per_tree)

    @property
    def path_counts(self) -> Tensor:
        """(K, N) int64: the tokens whose hard path passes each node, that is, ends in a leaf below it."""
        leaf_counts = self.leaf_counts
        K, L = leaf_counts.shape
        levels = [leaf_counts.view(K, 2**level, -1).sum(-1) for level in range(L.bit_length() - 1)]
        return torch.cat(levels, dim=1) if levels else leaf_counts[:, :0]

    @property
    def node_entropy(self) -> Tensor:
        """(K, N) float32, nats: mean entropy of each node's decisions; NaN where it decided none."""
        row = global_rows(self.nodes, self.nodes_per_tree).flatten()
        entropy = bernoulli_entropy(self.logits.detach().float()).flatten()
        counts = self.node_counts
        return entropy.new_zeros(counts.numel()).index_add(0, row, entropy).view_as(counts) / counts

    @property
    def leaf_usage(self) -> Tensor:
        """(K, L) float32: the share of the tokens that end in each leaf."""
        return self.leaf_counts / max(1, self.leaf.shape[0])

    @property
    def effective_leaves(self) -> Tensor:
        """(K,) float32: exp of the entropy of the leaf usage; L where all are used alike, 1 where one is used."""
        return torch.special.entr(self.leaf_usage).sum(-1).exp()

    def losses(self, names: Collection[str] = ("hardening", "balance")) -> dict[str, Tensor]:
        """Those of the auxiliary losses "hardening" and "balance" that are named, scalars."""
        known = {"hardening": self._hardening, "balance": self._balance}
        return {name: loss() for name, loss in known.items() if name in names}

    def _hardening(self) -> Tensor:
        """Mean over samples and evaluated nodes of the entropy of the decision (P1, section "hardening")."""
        return bernoulli_entropy(self.logits.float()).sum() / max(1, self.logits.numel())

    def _balance(self) -> Tensor:
        """leaves * sum_k f_k P_k (P3), mean over trees: 1 where all leaves are used alike.

        Soft routing has the probability of every leaf, and P_k is its mean. A hard path knows the probabilities of
        its own nodes only. There the loss is taken at every level of the tree, over the nodes of the level below it:
        f_c is the share of the tokens that reach node c, P_c the mean probability to step to it from its parent among
        all tokens; the mean over levels is returned. So it costs nothing beyond the path.
        """
        T, _, M = self.logits.shape
        if T == 0 or M == 0:
            return self.logits.float().sum()
        if self.soft:
            mean_P_L = leaf_probabilities(torch.sigmoid(self.logits[:, 0].float())).mean(0)
            return self.leaves_per_tree * (self.leaf_usage[0] * mean_P_L).sum()
        z = self.logits.float()
        right = z >= 0
        nodes = self.nodes
        left_child = 2 * nodes + 1
        size = 2 * self.nodes_per_tree + 1  # nodes and leaves of a tree, numbered together
        reached_TKD = left_child + right.long()
        share = _count(reached_TKD, size).float() / T
        at = lambda child: share.flatten()[global_rows(child, size)]  # noqa: E731
        p = torch.sigmoid(z)
        expected = p * at(left_child + 1) + (1 - p) * at(left_child)  # (T, K, D)
        children = 2.0 ** torch.arange(1, M + 1, device=z.device)
        return (expected.mean(0) * children).mean()


@dataclass(frozen=True)
class ExpertRouting:
    """The choice of experts of an MoE layer in its last forward.

    Attributes:
        leaf: (T, top_k) int64, the experts of each token.
        experts: E.
        importance: (E,) sum of the gates; differentiable.
        load: (E,) smooth count of the tokens (Shazeer et al., appendix A), differentiable; the plain count in eval.
    """

    leaf: Tensor
    experts: int
    importance: Tensor
    load: Tensor

    @property
    def leaf_counts(self) -> Tensor:
        """(1, E) int64: the tokens of each expert."""
        return _count(self.leaf.flatten().view(-1, 1, 1), self.experts)

    @property
    def leaf_usage(self) -> Tensor:
        """(1, E) float32: the share of the choices that fall on each expert."""
        return self.leaf_counts / max(1, self.leaf.numel())

    @property
    def effective_leaves(self) -> Tensor:
        """(1,) float32: exp of the entropy of the usage."""
        return torch.special.entr(self.leaf_usage).sum(-1).exp()

    def losses(self, names: Collection[str] = ("importance", "load")) -> dict[str, Tensor]:
        """Those of "importance" and "load" (Shazeer et al., appendix A) that are named, scalars."""
        known = {"importance": self.importance, "load": self.load}
        return {name: squared_coefficient_of_variation(load) for name, load in known.items() if name in names}


Routing = TreeRouting | ExpertRouting


def _count(index_TKM: Tensor, size: int) -> Tensor:
    """How often each of `size` values occurs in each tree: (K, size) int64. No value is read back to the host."""
    K = index_TKM.shape[1]
    row = global_rows(index_TKM, size).flatten()
    return row.new_zeros(K * size).index_add(0, row, torch.ones_like(row)).view(K, size)
