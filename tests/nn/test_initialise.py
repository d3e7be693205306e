"""Decisions from data: even leaves, unit logits, main directions, repeatable, and what is refused."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastff.nn import FFF, TreeFeedForward, UltraFFF, initialise_from_data


def data(tokens: int = 2048, features: int = 6) -> Tensor:
    """Correlated, off-centre, with one clear main direction."""
    torch.manual_seed(5)
    mix = torch.linalg.qr(torch.randn(features, features)).Q * torch.linspace(4, 1, features)[:, None]
    return torch.randn(tokens, features) @ mix + 3.0


LAYERS = {
    "fff": lambda: FFF(6, depth=3, leaf_width=2),
    "ultra": lambda: UltraFFF(6, depth=3, trees=2),
    "tree": lambda: TreeFeedForward(6, depth=3, leaf_width=2, trees=2),
}


@pytest.fixture(params=sorted(LAYERS))
def layer(request):
    return LAYERS[request.param]()


def test_every_leaf_gets_an_equal_share_and_the_root_unit_deviation(layer):
    x = data()
    assert initialise_from_data(layer, [x]) is layer
    layer.eval()(x)
    counts = layer.routing.leaf_counts
    assert counts.shape[1] == 8
    assert (counts - 256).abs().max() <= 3  # one sample a level
    root = layer.routing.logits[..., 0].detach()
    torch.testing.assert_close(root.std(0, unbiased=False), torch.ones(root.shape[1]), rtol=1e-3, atol=1e-3)
    assert root.median(0).values.abs().max() < 1e-2


def test_an_even_number_of_samples_is_halved():
    for tokens in (2, 4, 6, 10, 50, 64):
        layer, x = FFF(6, depth=1, leaf_width=1).eval(), data(tokens)
        initialise_from_data(layer, [x])
        layer(x)
        assert layer.routing.leaf_counts.tolist() == [[tokens // 2, tokens // 2]]


def test_every_node_has_unit_deviation_on_the_samples_that_reach_it():
    layer, x = FFF(6, depth=3, leaf_width=2).eval(), data()
    initialise_from_data(layer, [x])
    layer(x)
    logits, nodes = layer.routing.logits[:, 0].detach(), layer.routing.nodes[:, 0]
    for n in range(7):
        assert logits[nodes == n].std(unbiased=False).item() == pytest.approx(1, abs=0.05)


def test_the_root_takes_the_leading_principal_direction_and_the_next_trees_those_orthogonal_to_it():
    layer, x = TreeFeedForward(6, depth=2, leaf_width=1, trees=3), data()
    initialise_from_data(layer, [x])
    direction = nn.functional.normalize(layer.node_weight[:, 0].detach(), dim=-1)
    principal = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh
    assert (direction[0] @ principal[0]).abs() > 0.999
    assert (direction @ direction.T - torch.eye(3)).abs().max() < 1e-4
    assert (direction[1] @ principal[1]).abs() > 0.95


def test_more_trees_than_features_still_get_finite_directions():
    layer, x = TreeFeedForward(2, depth=2, leaf_width=1, trees=4).eval(), data(500, 2)
    initialise_from_data(layer, [x])
    layer(x)
    assert all(p.isfinite().all() for p in layer.decisions())
    assert (layer.routing.leaf_counts - 125).abs().max() <= 2


def test_only_decisions_change():
    layer = TreeFeedForward(6, depth=3, leaf_width=2)
    before = copy.deepcopy(layer.state_dict())
    initialise_from_data(layer, [data()])
    changed = {name for name, p in layer.state_dict().items() if not torch.equal(p, before[name])}
    assert changed == {"node_weight", "node_bias"}
    ultra = UltraFFF(6, depth=2)
    before = copy.deepcopy(ultra.state_dict())
    initialise_from_data(ultra, [data()])
    assert torch.equal(ultra.w_in[:, 3:], before["w_in"][:, 3:])
    assert torch.equal(ultra.w_out, before["w_out"])


def test_repeatable_under_a_seed_whatever_the_global_generator_which_it_leaves_alone(layer):
    x = data()
    model = nn.Sequential(nn.Dropout(0.5), layer)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    states = []
    for m in (model, other):
        torch.manual_seed(len(states))
        before = torch.get_rng_state()
        initialise_from_data(m, [x], seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(m.state_dict())
    assert all(torch.equal(p, states[1][name]) for name, p in states[0].items())
    initialise_from_data(third, [x], seed=4)  # other starting vectors: the same directions but for their signs
    assert any(not torch.equal(p, states[0][name]) for name, p in third.state_dict().items())


def test_train_and_eval_modes_come_back_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), FFF(6, depth=2, leaf_width=1), nn.BatchNorm1d(6)).train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    statistics = copy.deepcopy(model[2].state_dict())
    initialise_from_data(model, [data()])
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(ValueError, match="last dimension"):
        initialise_from_data(model, [torch.zeros(3, 5)])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, statistics[k]) for k, v in model[2].state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class TwoLayers(nn.Module):
    """Registers the layers in the order opposite to that in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.second = FFF(6, depth=2, leaf_width=2)
        self.first = TreeFeedForward(6, depth=2, leaf_width=2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.second(self.first(x) * scale)


def test_the_second_layer_is_set_on_what_the_first_now_puts_out():
    model, x = TwoLayers(), data()
    initialise_from_data(model, [x])
    model.eval()(x)
    for layer in (model.first, model.second):
        assert (layer.routing.leaf_counts - 512).abs().max() <= 2
    assert model.second.routing.logits[:, 0, 0].std(unbiased=False).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict"])
def test_batches_of_every_form_give_the_same(form):
    model, plain, batches = TwoLayers(), TwoLayers(), data().split(256)
    plain.load_state_dict(model.state_dict())
    forms = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x, 1.0),
        "list": lambda x: [x],
        "dict": lambda x: {"x": x, "scale": 1.0},
    }
    initialise_from_data(model, (forms[form](b) for b in batches))
    initialise_from_data(plain, [data()])
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_no_more_than_the_samples_asked_for_are_used():
    x = data(300)
    layers = [FFF(6, depth=2, leaf_width=1) for _ in range(2)]
    initialise_from_data(layers[0], [x[:60], x[60:].mul(100)], samples=60)
    initialise_from_data(layers[1], [x[:60]])
    assert torch.equal(layers[0].node_weight, layers[1].node_weight)
    assert torch.equal(layers[0].node_bias, layers[1].node_bias)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -37.3])
def test_constant_data_gives_finite_decisions_of_moderate_size(layer, value):
    x = torch.full((100, 6), value)
    initialise_from_data(layer, [x])
    weight, bias = layer.decisions()
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    assert weight.norm(dim=-1).max() < 100
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_fewer_samples_than_leaves_give_finite_decisions(layer, tokens):
    x = data(tokens)
    initialise_from_data(layer, [x])
    assert all(t.isfinite().all() for t in layer.decisions())
    layer.eval()(x)
    assert (layer.routing.leaf_counts.sum(1) == tokens).all()
    assert all(t.norm(dim=-1).max() < 1e4 for t in layer.decisions()[:1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_split_evenly_too(dtype):
    layer, x = FFF(6, depth=2, leaf_width=1, dtype=dtype).eval(), data().to(dtype)
    initialise_from_data(layer, [x])
    layer(x)
    assert layer.node_weight.dtype == dtype
    assert (layer.routing.leaf_counts - 512).abs().max() <= (2 if dtype == torch.float64 else 40)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = FFF(6, depth=1, leaf_width=1), UltraFFF(6, depth=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_what_cannot_be_set_raises():
    layer = FFF(6, depth=1, leaf_width=1)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        initialise_from_data(layer, [])
    with pytest.raises(ValueError, match="'idle' did not run"):
        initialise_from_data(Unused(), [data()])
    with pytest.raises(ValueError, match="got none for"):
        initialise_from_data(layer, [torch.empty(0, 6)])
    with pytest.raises(ValueError, match="samples must be at least 1"):
        initialise_from_data(layer, [data()], samples=0)


def test_a_model_without_trees_is_left_as_it_is():
    model = nn.Linear(6, 6)
    before = copy.deepcopy(model.state_dict())
    initialise_from_data(model, [data()])
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
