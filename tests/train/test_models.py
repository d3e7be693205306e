import pytest
import torch

from fastff.train import build_model


@pytest.mark.parametrize("layer", ["dense:width=8", "moe:experts=4,expert_width=2", "fff:depth=2,leaf_width=2"])
def test_the_vision_transformer_learns_through_every_layer(layer):
    torch.manual_seed(0)
    model = build_model("vit", (3, 8, 8), 5, layer)
    y = model(torch.randn(2, 3, 8, 8))
    assert y.shape == (2, 5)
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_mlp_flattens_and_drops_inputs_in_training_only():
    torch.manual_seed(0)
    model = build_model("mlp", (1, 4, 4), 3, "dense:width=2", 0.5)
    x = torch.ones(64, 1, 4, 4)
    assert not torch.equal(model(x)[0], model(x)[1])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[1])


def test_a_shape_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 10, 8\)"):
        build_model("vit", (3, 10, 8), 5, "dense:width=8")
    with pytest.raises(ValueError, match="model"):
        build_model("cnn", (3, 8, 8), 5, "dense:width=8")
