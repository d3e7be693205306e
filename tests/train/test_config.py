import dataclasses
import json

import pytest

from fastff.train import TrainConfig, build_layer, parse_layer


def test_settings_survive_json(tmp_path):
    config = TrainConfig(layer="fff:depth=2,leaf_width=3", lr=0.1, patience=4, initialise=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert TrainConfig.read(path) == config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"lr": float("nan")}, "lr"),
        ({"hardening": -1.0}, "hardening"),
        ({"optimizer": "adam2"}, "adam2"),
        ({"schedule": "steps"}, "schedule"),
        ({"precision": "int8"}, "precision"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"layer": "forest:depth=3"}, "forest"),
        ({"layer": "tree:deep=3"}, "deep"),
        ({"layer": "tree:depth"}, "depth"),
        ({"accumulation": 256, "batch_size": 128}, "accumulation"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_a_bad_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        TrainConfig(**settings)


def test_a_setting_of_the_wrong_type_is_named():
    with pytest.raises(TypeError, match="epochs"):
        TrainConfig(epochs=1.5)
    with pytest.raises(TypeError, match="lr"):
        TrainConfig(lr="fast")
    for setting in ({"flip": "yes"}, {"seed": 1.5}, {"warmup": None}, {"layer": 5}, {"data": 5}, {"epochs": True}):
        with pytest.raises(TypeError, match=next(iter(setting))):
            TrainConfig(**setting)
    assert TrainConfig(lr=1).lr == 1


@pytest.mark.parametrize("text", ["{", '{"epochz": 3}', "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        TrainConfig.read(path)


def test_every_setting_says_what_it_means():
    assert all(len(field.metadata["help"]) > 10 or field.name == "lr" for field in dataclasses.fields(TrainConfig))


def test_a_layer_by_name_takes_its_options():
    layer = build_layer("tree:depth=2,leaf_width=3,two_sided=false,gradient=chosen", 5, 7)
    assert (layer.in_features, layer.out_features, layer.depth, layer.leaf_width) == (5, 7, 2, 3)
    assert layer.gradient == "chosen"
    assert layer.two_sided is False
    assert parse_layer("fff:depth=1,leaf_width=2,dropout=0.5")[1] == {"depth": 1, "leaf_width": 2, "dropout": 0.5}


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match="leaf_width"):
        build_layer("fff:depth=1", 5)


def test_a_layer_beyond_the_memory_is_named():
    with pytest.raises(ValueError, match=r"'fff:depth=1,leaf_width=\d+' of 5 features is too large: .*allocate"):
        build_layer(f"fff:depth=1,leaf_width={2**50}", 5)
