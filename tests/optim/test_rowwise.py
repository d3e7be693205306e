"""The row-wise AdamW against torch's dense one: weights, outputs of each step, saves, and which rows a step touches."""

import copy
import gc
import io
import math
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastff import merge_base
from fastff.nn import TreeFeedForward, UltraFFF
from fastff.ops import use_backend
from fastff.ops.backend import extension
from fastff.optim import RowwiseAdamW
from fastff.optim.gauss import gauss_quadrature
from fastff.optim.rows import Rows

I = 32  # rows of fewer elements are stepped densely
MAKE = {
    "ultra": lambda sparse: UltraFFF(I, depth=7, trees=2, sparse=sparse),
    "tree": lambda sparse: TreeFeedForward(I, depth=6, leaf_width=2, gradient="exact", sparse=sparse),
    "tree-sampled": lambda sparse: TreeFeedForward(
        I, depth=7, leaf_width=1, trees=2, gradient="sampled", two_sided=False, shared_base=False, sparse=sparse
    ),
    "mixed": lambda sparse: nn.Sequential(
        nn.Linear(I, 48), nn.Tanh(), UltraFFF(48, I, depth=8, sparse=sparse), nn.LayerNorm(I), nn.Linear(I, I)
    ),
}
compiled = pytest.mark.skipif(extension is None, reason="only the compiled kernels make sparse gradients")


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def path(request, monkeypatch) -> None:
    """All holds of the C++ and of the definition."""
    if request.param == "torch":
        monkeypatch.setattr(Rows, "_compiled", lambda rows: None)
    elif extension is None:
        pytest.skip("this installation lacks the compiled kernels")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Rows of 32 elements are quicker without others to wait for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(name: str = "ultra", **options) -> tuple[nn.Module, RowwiseAdamW, nn.Module, torch.optim.AdamW]:
    """The same model twice, one with sparse gradients and the row-wise optimiser, one dense throughout."""
    mine, theirs = MAKE[name](True), MAKE[name](False)
    theirs.load_state_dict(mine.state_dict())
    options = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-4} | options  # a smaller eps magnifies rounding
    return (
        mine,
        RowwiseAdamW(mine.parameters(), model=mine, **options),
        theirs,
        torch.optim.AdamW(theirs.parameters(), **options),
    )


def backward(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # "sampled" draws
    y = model(x)
    (y - x.roll(1, -1)).square().mean().backward()
    return y.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> None:
    for x in batches:
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()


def batches(n: int, tokens: int = 2) -> list[Tensor]:
    return [torch.randn(tokens, I, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def assert_same(mine: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    """Equal but for rounding, measured by the largest weight of each parameter."""
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        scale = q.abs().max().item() if q.numel() else 0
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}")


def assert_identical(mine: nn.Module, other: nn.Module) -> None:
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@compiled
@pytest.mark.parametrize(
    ("name", "betas", "eps"),
    [
        ("ultra", (0.9, 0.999), 1e-3),
        ("ultra", (0.9, 0.999), 1e-12),
        ("ultra", (0.9, 0.95), 1e-3),
        ("ultra", (0.0, 0.99), 1e-8),
        ("tree", (0.9, 0.999), 1e-3),
        ("tree", (0.9, 0.95), 1e-12),
        ("tree-sampled", (0.9, 0.999), 1e-4),
        ("mixed", (0.9, 0.999), 1e-3),
    ],
)
def test_training_is_that_of_dense_adamw(name, betas, eps):
    steps = 150
    mine, optimizer, theirs, dense = pair(name, betas=betas, eps=eps)
    # A schedule with warm-up; also of beta1, as OneCycleLR has it.
    for o in (optimizer, dense):
        for group in o.param_groups:
            group["initial_lr"] = group["lr"]
    rate = [min(1, (t + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * t / steps)) for t in range(steps)]
    for t, x in enumerate(batches(steps)):
        outputs = []
        for model, o in ((mine, optimizer), (theirs, dense)):
            for group in o.param_groups:
                group["lr"] = group["initial_lr"] * rate[t]
                group["betas"] = (betas[0] * (1 - 0.1 * t / steps), betas[1])
            o.zero_grad()
            outputs.append(backward(model, x))
            o.step()
        torch.testing.assert_close(*outputs, rtol=0, atol=2e-5 * outputs[1].abs().max().item())
    assert any((rows.pending[1] > 50 * -math.log(betas[1]) / 2).any() for rows in optimizer._rows.values())
    optimizer.catch_up()
    assert_same(mine, theirs, 3e-5)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        for key, value in dense.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


def sparse_steps(dtype: torch.dtype, first: int, steps: int, **options) -> tuple[Tensor, Tensor]:
    """A weight after random gradients over eight decades in few rows, and that of torch.optim.AdamW.

    From step `first` on; until then one row alone has gradients.
    """
    layer = UltraFFF(I, depth=5, trees=2, dtype=dtype)
    p = layer.w_in
    q = p.detach().clone().requires_grad_()
    mine, theirs = RowwiseAdamW([p], model=layer, **options), torch.optim.AdamW([q], **options)
    for step in range(1, first + steps):
        index = torch.randperm(2 * 63)[:5].sort().values if step >= first else torch.tensor([70])
        values = torch.randn(len(index), I, dtype=dtype) * 10 ** torch.empty(len(index), I, dtype=dtype).uniform_(-8, 0)
        place = torch.stack([index // 63, index % 63])
        p.grad = torch.sparse_coo_tensor(place, values, p.shape, check_invariants=True)
        q.grad = p.grad.to_dense()
        mine.step()
        theirs.step()
    assert mine._rows[p].behind.sum() > 100
    mine.catch_up()
    return p.detach(), q.detach()


@pytest.mark.parametrize("eps", [0.1, 1e-3, 1e-5, 1e-12])
@pytest.mark.parametrize(
    ("betas", "first", "error"),
    [((0.9, 0.999), 1, 1e-4), ((0.9, 0.999), 30, 1e-6), ((0.9, 0.95), 1, 2e-3), ((0.9, 0.95), 30, 5e-4)],
)
def test_quadrature_is_as_exact_as_said(betas, first, error, eps):
    # In float64, where nothing hides it.
    p, q = sparse_steps(torch.float64, first, 100, lr=1e-2, betas=betas, eps=eps, weight_decay=0.1)
    assert (p - q).abs().max() < error * 1e-2


def test_bfloat16_within_its_rounding():
    p, q = sparse_steps(torch.bfloat16, 1, 60, lr=1e-2, eps=1e-8)
    assert p.dtype == torch.bfloat16
    torch.testing.assert_close(p, q, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("y", "error"),
    [
        ([0.3], 1e-9),
        ([0.3, 0.4], 1e-5),
        ([1.0, 1.01, 1.03], 1e-8),
        ([0.1, 1.4, 2.0], 1e-6),
        ([0, 0.5, 1, 1.5, 2], 1e-3),
    ],
)
def test_quadrature_of_few_points(y, error):
    y = torch.tensor(y, dtype=torch.float64)
    amount = torch.linspace(1, 0.3, len(y), dtype=torch.float64)
    wide = torch.tensor([0.0, 1.0], dtype=torch.float64)  # a neighbour that asks for three nodes
    columns = [torch.stack([(a * t**i).sum() for i in range(6)]) for a, t in ((amount, y), (torch.ones(2), wide))]
    for both in (columns[:1], columns):
        weights, nodes = gauss_quadrature(torch.stack(both, dim=1))
        assert (weights >= 0).all()
        for root in (0.1, 1.0, 10.0):
            found = (weights[:, 0] / (root + nodes[:, 0].exp())).sum()
            exact = (amount / (root + y.exp())).sum()
            torch.testing.assert_close(found, exact, rtol=error, atol=0)


def test_rows_that_wait_until_their_momentum_underflows():
    layer = UltraFFF(I, depth=4)
    p, steps, lr, wd, b1, b2 = layer.w_in, 1500, 1e-3, 0.1, 0.5, 0.999
    optimizer = RowwiseAdamW([p], lr, model=layer, betas=(b1, b2), weight_decay=wd, eps=0.0)
    start = p.detach().clone()
    for step in range(steps):
        p.grad = torch.sparse_coo_tensor([[0], [min(step, 1)]], torch.ones(1, I), p.shape, check_invariants=True)
        optimizer.step()
    optimizer.catch_up()
    decay = (1 - lr * wd) ** steps
    torch.testing.assert_close(p[0, 2:], start[0, 2:] * decay)  # never touched: in dense AdamW 0 / 0
    assert optimizer.state[p]["exp_avg"][0, 0].eq(0).all()
    steps_taken = sum(  # by row 0, whose one gradient was 1
        lr * b1 ** (j - 1) * (1 - b1) / (1 - b1**j) / math.sqrt(b2 ** (j - 1) * (1 - b2) / (1 - b2**j))
        * (1 - lr * wd) ** (steps - j)
        for j in range(1, 100)
    )  # fmt: skip
    torch.testing.assert_close(p[0, 0], start[0, 0] * decay - steps_taken, rtol=1e-5, atol=1e-6)


@compiled
def test_a_forward_brings_up_what_it_reads_and_a_step_touches_what_has_gradients():
    model = UltraFFF(I, depth=9, trees=2, sparse=True)
    optimizer = RowwiseAdamW(model.parameters(), model=model, lr=1e-2)
    train(model, optimizer, batches(5, 3))
    x = torch.randn(3, I)
    for mode in (model.train, model.eval):
        mode()
        with torch.inference_mode(mode == model.eval):
            model(x)
        met = torch.zeros(2, 1023, dtype=torch.bool)
        nodes = torch.cat([model.routing.nodes, model.routing.leaf_counts.new_empty(3, 2, 0)], dim=-1)
        for k in range(2):
            met[k, nodes[:, k].flatten()] = True
            for t in range(3):
                last = nodes[t, k, -1]
                logit = x[t] @ model.w_in[k, last] + model.b_in[k, last]
                met[k, 2 * last + 1 + (logit >= 0)] = True
        for name in ("w_in", "w_out"):
            rows = optimizer._rows[getattr(model, name)]
            assert not (rows.behind.view(2, -1) & met).any()
            assert rows.behind.sum() > 1800
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    train(model, optimizer, [x])
    for name in ("w_in", "w_out"):
        changed = (getattr(model, name) != before[name]).any(-1)
        assert torch.equal(changed, met)
        assert torch.equal(~optimizer._rows[getattr(model, name)].behind.view(2, -1), met)


@compiled
def test_catch_up_and_saves_make_all_rows_current():
    for save in (
        lambda model, o: o.catch_up(),
        lambda model, o: model.state_dict(),
        lambda model, o: o.state_dict(),
        lambda model, o: model.load_state_dict({}, strict=False),
    ):
        mine, optimizer, theirs, dense = pair("mixed")
        for model, o in ((mine, optimizer), (theirs, dense)):
            train(model, o, batches(12))
        with pytest.raises(AssertionError):
            assert_same(mine, theirs)
        save(mine, optimizer)
        assert_same(mine, theirs)
        for model, o in ((mine, optimizer), (theirs, dense)):
            train(model, o, batches(20)[12:])
        optimizer.catch_up()
        assert_same(mine, theirs)


@compiled
def test_resumes_bit_for_bit_and_copies_carry_on():
    mine, optimizer, *_ = pair("mixed")
    train(mine, optimizer, batches(10))
    file = io.BytesIO()
    torch.save((mine.state_dict(), optimizer.state_dict()), file)
    other = MAKE["mixed"](True)
    resumed = RowwiseAdamW(other.parameters(), model=other, lr=1.0)
    train(other, resumed, batches(3))  # what it had to make up for must not reach the loaded weights
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state)
    other.load_state_dict(weights)
    for model, o in ((mine, optimizer), (other, resumed)):
        train(model, o, batches(20)[10:])
    both = copy.deepcopy((mine, optimizer)), pickle.loads(pickle.dumps((mine, optimizer)))
    for model, o in ((mine, optimizer), (other, resumed), *both):
        train(model, o, batches(30)[20:])
        o.catch_up()
    for model in (other, both[0][0], both[1][0]):
        assert_identical(mine, model)


@compiled
def test_state_is_that_of_torch():
    mine, optimizer, theirs, dense = pair("mixed")
    for model, o in ((mine, optimizer), (theirs, dense)):
        train(model, o, batches(10))
    dense.load_state_dict(
        {"state": optimizer.state_dict()["state"], "param_groups": dense.state_dict()["param_groups"]}
    )
    optimizer.load_state_dict(dense.state_dict())
    for model, o in ((mine, optimizer), (theirs, dense)):
        train(model, o, batches(20)[10:])
    optimizer.catch_up()
    assert_same(mine, theirs)


@compiled
def test_parameters_without_gradient_rest_and_groups_differ():
    results = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = MAKE["mixed"](sparse)
        groups = [
            {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.5, "lr": 3e-3},
            {"params": [p for p in model.parameters() if p.dim() == 2]},
        ]
        kind, options = (RowwiseAdamW, {"model": model}) if sparse else (torch.optim.AdamW, {})
        optimizer = kind(groups, lr=1e-2, weight_decay=0.0, **options)
        for t, x in enumerate(batches(30)):
            optimizer.zero_grad()
            backward(model, x)
            if t % 3 == 1:
                model[2].w_out.grad = None
            if 10 < t < 20:
                model[2].w_in.grad = model[0].weight.grad = None
            optimizer.step()
        results.append((model, optimizer.state_dict()["state"]))
    assert_same(results[0][0], results[1][0])
    assert [s["step"] for s in results[0][1].values()] == [s["step"] for s in results[1][1].values()]
    assert {int(s["step"]) for s in results[0][1].values()} == {20, 21, 30}


@compiled
@pytest.mark.parametrize("name", ["ultra", "tree"])
def test_accumulation_clipping_closures_and_empty_batches(name):
    mine, optimizer, theirs, dense = pair(name)
    for model, o in ((mine, optimizer), (theirs, dense)):
        for t, x in enumerate(batches(40)):
            o.zero_grad()
            first = model(x)  # both graphs live at once: the second forward may bring up more rows
            second = model(2 * x)
            (first - x).square().mean().backward()
            (second - x).square().mean().backward()
            for p in model.parameters():
                p.grad.mul_(0.5)
            o.step()
            if t % 4 == 0:
                o.zero_grad()
                model(x[:0]).sum().backward()
                o.step()
            if t % 5 == 0:
                o.zero_grad()
                assert o.step(lambda model=model, x=x: backward(model, x + 1).shape) == (2, I)
    optimizer.catch_up()
    assert_same(mine, theirs)


@compiled
def test_dense_gradients_between_sparse_ones():
    mine, optimizer, theirs, dense = pair()
    for model, o in ((mine, optimizer), (theirs, dense)):
        for t, x in enumerate(batches(30)):
            with use_backend("reference" if t % 10 in (0, 7) else "cpu"):
                train(model, o, [x])
            if t % 10 == 4:
                train(model, o, batches(1, 300))  # more rows than pay
                assert model is theirs or all(rows.current for rows in optimizer._rows.values())
    optimizer.catch_up()
    assert_same(mine, theirs)


def test_only_dense_gradients_step_as_in_torch():
    mine, theirs = (UltraFFF(6, depth=3) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    optimizer = RowwiseAdamW(mine.parameters(), model=mine)
    for model, o in ((mine, optimizer), (theirs, torch.optim.AdamW(theirs.parameters(), fused=True))):
        for x in batches(10, 3):
            o.zero_grad()
            model(x[:, :6]).square().sum().backward()
            o.step()
    assert_identical(mine, theirs)
    assert not optimizer._rows


def test_sparse_gradients_of_other_modules_step_as_dense_ones():
    mine, theirs = nn.Embedding(9, 40, sparse=True), nn.Embedding(9, 40)
    theirs.load_state_dict(mine.state_dict())
    for model, o in (
        (mine, RowwiseAdamW(mine.parameters(), model=mine)),
        (theirs, torch.optim.AdamW(theirs.parameters(), fused=True)),
    ):
        for i in range(8):
            o.zero_grad()
            model(torch.tensor([i, 3])).square().sum().backward()
            o.step()
    assert_identical(mine, theirs)


@compiled
def test_the_end_of_the_optimizer_leaves_the_model_current():
    # One neuron's gradient is 7e-5, a sum that nearly cancels; an eps as small as pair's own magnifies its rounding.
    mine, optimizer, theirs, dense = pair("tree", eps=1e-3)
    for model, o in ((mine, optimizer), (theirs, dense)):
        train(model, o, batches(12))
    del optimizer, o
    gc.collect()
    assert not mine._forward_pre_hooks
    assert_same(mine, theirs)
    merge_base(mine)


@compiled
def test_errors_of_the_forward_stay_its_own():
    mine, optimizer, *_ = pair()
    train(mine, optimizer, batches(3))
    for x, error in ((torch.ones(2, I + 1), ValueError), (torch.ones(2, I).double(), TypeError), ("x", TypeError)):
        with pytest.raises(error, match="x must"):
            mine(x)
    mine(x=torch.ones(2, I))


@compiled
def test_autocast_reads_current_rows():
    mine, optimizer, theirs, dense = pair()
    for model, o in ((mine, optimizer), (theirs, dense)):
        train(model, o, batches(10))
    x = torch.randn(3, I)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(mine(x), theirs(x), rtol=0.02, atol=0.02)
    assert not (optimizer._rows[mine.w_in].behind.view(2, -1)[:, 0]).any()


WRONG = {"lr": (-1.0, "1"), "betas": (0.9, (0.9, 0.0), (0.9, 1.0)), "eps": (-1.0,), "weight_decay": (float("nan"),)}
WRONG |= {"model": (None,)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_arguments_are_named(name, value):
    layer = UltraFFF(I, depth=1)
    with pytest.raises(ValueError, match=f"{name} must be .*got"):
        RowwiseAdamW(layer.parameters(), **{"model": layer} | {name: value})


def test_complex_gradients_are_refused():
    layer = nn.Linear(2, 2, dtype=torch.complex64)
    layer(torch.ones(2, dtype=torch.complex64)).abs().sum().backward()
    with pytest.raises(ValueError, match="grad must be real, got torch.complex64"):
        RowwiseAdamW(layer.parameters(), model=layer).step()
