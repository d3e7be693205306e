"""The block-wise optimisers against torch's and gradients made by hand; copies, saves, recomputed forwards."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastff.nn import FFF, MoE, TreeFeedForward, UltraFFF
from fastff.optim import BlockwiseAdam, BlockwiseSGD

LEAF = ("leaf_w1", "leaf_b1", "leaf_w2", "leaf_b2")
KINDS = [(BlockwiseSGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}), (BlockwiseAdam, {"weight_decay": 0.1})]


def hard_fff(depth: int = 1, dtype: torch.dtype = torch.float32) -> FFF:
    """A tree that splits by the sign of the first feature; at depth 0 a single leaf."""
    torch.manual_seed(0)
    layer = FFF(3, depth=depth, leaf_width=2, activation="gelu", harden=depth > 0)
    if depth:
        with torch.no_grad():
            layer.node_weight.copy_(torch.eye(3)[:1])
            layer.node_bias.zero_()
    return layer.to(dtype)


def batch(left: int, right: int) -> torch.Tensor:
    """`left` tokens for leaf 0 and `right` for leaf 1 of `hard_fff`."""
    x = torch.randn(left + right, 3).abs() + 0.1
    x[:left, 0] *= -1
    return x


def backward(model: nn.Module, x: torch.Tensor, divisor: int = 1) -> None:
    (model(x).square().mean() / divisor).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
    for x in batches:
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()


def count(optimizer: torch.optim.Optimizer, layer: FFF) -> list[int]:
    return optimizer.state[layer.leaf_w2]["count"].tolist()


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), [*KINDS, (BlockwiseSGD, {"lr": 0.1}), (BlockwiseAdam, {})])
def test_blocks_that_see_all_tokens_and_other_parameters_step_as_in_torch(kind, options, dtype):
    mine = nn.Sequential(nn.Linear(3, 3, dtype=dtype), hard_fff(0, dtype), nn.Linear(3, 2, dtype=dtype))
    theirs = copy.deepcopy(mine)
    reference = {BlockwiseSGD: torch.optim.SGD, BlockwiseAdam: torch.optim.AdamW}[kind]
    batches = [torch.randn(7 + i, 3, dtype=dtype) for i in range(12)]
    train(mine, kind(mine.parameters(), model=mine, block_batch=1, **options), batches)
    train(theirs, reference(theirs.parameters(), foreach=False, **({"weight_decay": 0.0} | options)), batches)
    # In float64 the power of a tensor and of a number differ in the last bit.
    assert_same(mine, theirs, 1e-14 if dtype == torch.float64 else 0.0)


@pytest.mark.parametrize("layer", [TreeFeedForward(3, depth=2, leaf_width=2), MoE(3, experts=3, expert_width=2)])
def test_bases_and_gates_step_each_time(layer):
    free = ("base", "gate", "noise")
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=10**6)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    backward(layer, torch.randn(16, 3))
    optimizer.step()
    for name, p in layer.named_parameters():
        expected = before[name].add(p.grad, alpha=-0.1) if name.startswith(free) else before[name]
        assert torch.equal(p, expected), name


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_unused_leaf_and_its_moments_rest(kind, options):
    layer = hard_fff()
    optimizer = kind(layer.parameters(), model=layer, block_batch=1, **options)
    train(layer, optimizer, [batch(2, 2)])
    before = {name: getattr(layer, name).detach().clone() for name in LEAF}
    state = copy.deepcopy(optimizer.state_dict()["state"])
    train(layer, optimizer, [batch(4, 0)] * 3)
    for i, (name, p) in enumerate(layer.named_parameters()):
        if name in LEAF:
            assert not torch.equal(p[0], before[name][0])
            assert torch.equal(p[1], before[name][1])
            for key, value in optimizer.state[p].items():
                assert torch.equal(value[1], state[i][key][1]), key
            assert all(value.isfinite().all() for value in optimizer.state[p].values())


def test_leaf_steps_when_it_has_seen_enough_with_the_mean_of_its_own_samples():
    layer = hard_fff()
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=5)
    frozen, batches = copy.deepcopy(layer), [batch(6, 2), batch(6, 2), batch(1, 2)]
    for x in batches[:2]:
        train(layer, optimizer, [x])
        assert torch.equal(layer.leaf_w2[1], frozen.leaf_w2[1])
    assert count(optimizer, layer) == [0, 4]
    train(layer, optimizer, batches[2:])
    assert count(optimizer, layer) == [1, 0]
    assert not optimizer.state[layer.leaf_w2]["accumulated"][1].any()
    backward(frozen, torch.cat([x[-2:] for x in batches]))  # the six samples of leaf 1, by themselves
    for name in LEAF:
        p = getattr(frozen, name)
        torch.testing.assert_close(getattr(layer, name)[1], p[1] - 0.1 * p.grad[1])


def test_momentum_takes_the_gradient_a_block_steps_with():
    layer = hard_fff()
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, momentum=0.5, model=layer, block_batch=4)
    expected, buffer = copy.deepcopy(layer), 0
    for first, second in [(batch(1, 2), batch(1, 2)), (batch(3, 2), batch(3, 2))]:
        train(layer, optimizer, [first, second])
        expected.zero_grad()
        backward(expected, torch.cat([first[-2:], second[-2:]]))
        buffer = 0.5 * buffer + expected.leaf_w2.grad[1]
        for name in LEAF:  # the other parameters as the optimiser left them
            getattr(expected, name).data.copy_(getattr(layer, name))
        torch.testing.assert_close(optimizer.state[layer.leaf_w2]["momentum_buffer"][1], buffer)


def test_bias_correction_counts_the_steps_of_a_block():
    layer = hard_fff()
    optimizer = BlockwiseAdam(layer.parameters(), lr=0.01, eps=0.0, model=layer, block_batch=1)
    train(layer, optimizer, [batch(4, 0)] * 5)
    before = layer.leaf_b2.detach().clone()
    train(layer, optimizer, [batch(4, 2)])
    assert optimizer.state[layer.leaf_b2]["step"].tolist() == [6, 1]
    torch.testing.assert_close(layer.leaf_b2[1], before[1] - 0.01 * layer.leaf_b2.grad[1].sign())


def test_gradient_accumulation_is_one_large_batch():
    layer, x = hard_fff(), [batch(1, 3), batch(3, 1)]
    whole = copy.deepcopy(layer)
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=4)
    for part in x:
        backward(layer, part, 2)
    optimizer.step()
    train(whole, BlockwiseSGD(whole.parameters(), lr=0.1, model=whole, block_batch=4), [torch.cat(x)])
    assert_same(layer, whole, 1e-6)


def test_only_forwards_that_are_learnt_from_count_and_once():
    layer = hard_fff()
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=100)
    with torch.no_grad():
        layer(batch(1, 1))
    layer(batch(1, 1))  # no backward
    layer.eval()
    backward(layer, batch(1, 1))
    layer.train()
    y = layer(layer(batch(1, 0)) * 0 + batch(2, 3)[:1])  # a layer called twice
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    optimizer.step()
    assert count(optimizer, layer) == [2, 0]
    backward(layer, batch(5, 5))
    optimizer.zero_grad()  # the gradient is dropped, so are its samples
    backward(layer, batch(1, 3))
    optimizer.step()
    assert count(optimizer, layer) == [3, 3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_once(reentrant):
    layer = hard_fff()
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=100)
    checkpoint(layer, batch(2, 3).requires_grad_(), use_reentrant=reentrant).sum().backward()
    optimizer.step()
    assert count(optimizer, layer) == [2, 3]


@pytest.mark.parametrize("compiled", [False, True])
def test_groups_differ_and_parameters_left_out_rest(compiled):
    model = nn.Sequential(hard_fff(), nn.Linear(3, 2))
    before = copy.deepcopy(model)
    groups = [{"params": [model[0].leaf_w1], "lr": 0.5, "block_batch": 3}, {"params": model[1].parameters()}]
    optimizer = BlockwiseSGD(groups, lr=0.1, model=model, block_batch=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    train(torch.compile(model, backend="aot_eager") if compiled else model, optimizer, [batch(4, 2)])
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    w, grad = before[0].leaf_w1, model[0].leaf_w1.grad
    torch.testing.assert_close(model[0].leaf_w1, torch.stack([w[0] - 0.5 * grad[0] * 6 / 4, w[1]]))
    torch.testing.assert_close(model[1].weight, before[1].weight - 0.1 * model[1].weight.grad)
    assert torch.equal(model[0].leaf_w2, before[0].leaf_w2)
    assert optimizer.step(lambda: model(batch(1, 1)).requires_grad) is True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_resumes_bit_for_bit(kind, options, dtype):
    model, batches = hard_fff(dtype=dtype), [batch(i % 4, 2 - i % 2).to(dtype) for i in range(8)]
    optimizer = kind(model.parameters(), model=model, block_batch=4, **options)
    train(model, optimizer, batches[:4])
    assert any((state["count"] > 0).any() for state in optimizer.state.values())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    other = copy.deepcopy(model)
    resumed = kind(other.parameters(), model=other, block_batch=9, **options)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["block_batch"] == 4
    train(model, optimizer, batches[4:])
    train(other, resumed, batches[4:])
    assert_same(model, other)
    pair = copy.deepcopy((model, optimizer))  # the optimiser's copy watches the model's copy
    train(model, optimizer, batches)
    train(*pair, batches)
    assert_same(model, pair[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_counts_stay_exact(dtype):
    layer = hard_fff(dtype=dtype)
    optimizer = BlockwiseAdam(layer.parameters(), model=layer, block_batch=2**40)
    train(layer, optimizer, [batch(2, 3).to(dtype)])
    for state in optimizer.state.values():
        state["count"] += 2**24 + 1
        state["step"] += 2**24 + 1
    expected = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.load_state_dict(optimizer.state_dict())
    train(layer, optimizer, [batch(1, 0).to(dtype)])
    for p, old in zip(layer.parameters(), expected.values(), strict=True):
        state, n = optimizer.state[p], old["count"].numel()
        assert torch.equal(state["count"], old["count"] + torch.tensor([1, 0])[:n])
        assert torch.equal(state["step"], old["step"])


def test_models_copy_and_pickle_and_let_the_optimizer_go():
    layer = hard_fff()
    optimizer = BlockwiseSGD(layer.parameters(), lr=0.1, model=layer, block_batch=100)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        backward(other, batch(5, 5))
    backward(layer, batch(1, 2))
    optimizer.step()
    assert count(optimizer, layer) == [1, 2]
    backward_later = layer(batch(1, 1)).sum()
    del optimizer
    gc.collect()
    assert not layer._forward_hooks
    backward_later.backward()


@pytest.mark.parametrize(("kind", "lr"), [(BlockwiseSGD, 0.5), (BlockwiseAdam, 0.02)])
@pytest.mark.parametrize("make", [FFF, UltraFFF, TreeFeedForward, MoE])
def test_training_lowers_the_loss(make, kind, lr):
    torch.manual_seed(0)
    sizes = {FFF: {"depth": 2, "leaf_width": 4}, UltraFFF: {"depth": 2}, MoE: {"experts": 4, "expert_width": 4}}
    model, x = make(8, **sizes.get(make, sizes[FFF])), torch.randn(64, 8)
    optimizer = kind(model.parameters(), model=model, block_batch=32, lr=lr)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(nn.functional.mse_loss(model(x), x.roll(1, 1)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


WRONG = {"block_batch": (0, None, 1.5, True), "lr": (-1.0, "1"), "momentum": (-1.0,), "weight_decay": (float("nan"),)}
WRONG |= {"betas": (0.9, (0.9,), (0.9, 1.0)), "eps": (-1.0,), "model": (None,)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_arguments_are_named(name, value):
    layer, kind = hard_fff(), BlockwiseAdam if name in ("betas", "eps") else BlockwiseSGD
    arguments = {"lr": 0.1, "model": layer, "block_batch": 1} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be .*got"):
        kind(layer.parameters(), **arguments)


def test_sparse_and_complex_gradients_are_refused():
    sparse, complex_ = nn.Embedding(4, 2, sparse=True), nn.Linear(2, 2, dtype=torch.complex64)
    sparse(torch.tensor([1])).sum().backward()
    complex_(torch.ones(2, dtype=torch.complex64)).abs().sum().backward()
    for model in (sparse, complex_):
        with pytest.raises(ValueError, match="dense and real"):
            BlockwiseSGD(model.parameters(), lr=0.1, model=model, block_batch=1).step()
