import math

import pytest
import torch
import torch.nn.functional as F

from fastff.nn import FFF, quantize
from fastff.nn.usage import LayerUse
from fastff.train import build_model, evaluate, load_data
from fastff.train import evaluation as module
from fastff.train.evaluation import can_soften, mean_inputs, routing_soft


@pytest.fixture
def data():
    return load_data("digits", limit=300, validation=60)


def model_of(layer: str):
    torch.manual_seed(0)
    return build_model("mlp", (1, 8, 8), 10, layer)


@pytest.mark.parametrize("layer", ["fff:depth=3,leaf_width=4", "tree:depth=2,leaf_width=3,trees=2", "dense:width=5"])
def test_the_figures_do_not_depend_on_the_batch(data, monkeypatch, layer):
    model = model_of(layer)
    whole = evaluate(model, data, data.test)
    monkeypatch.setattr(module, "BATCH", 50)
    parts = evaluate(model, data, data.test)
    logits = model.eval()(data.normalise(data.test.inputs))
    assert whole.accuracy == pytest.approx(100 * (logits.argmax(-1) == data.test.labels).float().mean().item())
    assert whole.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for name, use in whole.layers.items():
        assert torch.equal(use.leaf_counts, parts.layers[name].leaf_counts)
        assert (use.leaf_counts.sum(-1) == len(data.test)).all()
        torch.testing.assert_close(
            use.node_entropy, parts.layers[name].node_entropy, rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_a_model_in_int8_is_evaluated_too(data):
    model = model_of("tree:depth=2,leaf_width=3,trees=2").eval()
    logits = quantize(model)(data.normalise(data.test.inputs))
    found = evaluate(model, data, data.test)
    assert found.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)


def test_soft_and_hard_differ_and_the_layer_is_left_as_it_was(data):
    model = model_of("fff:depth=3,leaf_width=4").train()
    hard, soft = evaluate(model, data, data.test), evaluate(model, data, data.test, soft=True)
    assert hard.loss != soft.loss
    assert model.training
    assert model.layer.harden is None
    layer = model.layer
    with routing_soft(model, True):
        assert layer.harden is False
    assert layer.harden is None


def test_only_an_fff_with_nodes_has_a_soft_form():
    assert can_soften(model_of("fff:depth=1,leaf_width=4"))
    assert not can_soften(model_of("fff:depth=0,leaf_width=4"))
    assert not can_soften(model_of("tree:depth=2,leaf_width=4"))


def test_the_use_of_a_layer():
    counts = torch.tensor([[50, 50, 0, 0]])
    entropy = torch.tensor([[0.5, 0.2, 0.0]], dtype=torch.float64) * torch.tensor([100, 100, 0])
    use = LayerUse(counts, torch.tensor([[100, 100, 0]]), entropy)
    assert use.effective_leaves == pytest.approx(2)
    assert use.used_leaves == 0.5
    assert use.mean_entropy == pytest.approx(0.35)
    found = use.to_dict()
    assert found["node_entropy"] == [[0.5, 0.2, None]]
    assert found["leaves"] == 4
    assert not any(isinstance(v, float) and math.isnan(v) for v in found.values())


def test_the_mean_input_of_each_leaf(data):
    model = model_of("fff:depth=2,leaf_width=1")
    means = mean_inputs(model, model.layer, data, data.test)
    assert isinstance(model.layer, FFF)
    model(data.normalise(data.test.inputs))
    leaf = model.layer.routing.leaf[:, 0]
    for k in range(4):
        reached = data.test.inputs[leaf == k].float()
        expected = reached.mean(0) if len(reached) else torch.zeros(1, 8, 8)
        torch.testing.assert_close(means[k], expected)
