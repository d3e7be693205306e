import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastff.train import TrainConfig, evaluate, load_data, train
from fastff.train.saved import load_model


@pytest.fixture
def run(tmp_path):
    """A folder with a finished run, and its data."""
    c = TrainConfig(layer="tree:depth=2,leaf_width=2", limit=300, validation=60, epochs=2)
    result = train(c, tmp_path, quiet=True)
    return tmp_path, load_data("digits", limit=300, validation=60), result


def test_a_saved_model_gives_the_accuracy_of_its_run(run):
    folder, data, result = run
    model, data = load_model(folder, data)
    assert not model.training
    assert evaluate(model, data, data.test).accuracy == result["test_accuracy"]


def test_other_data_are_normalised_as_those_of_the_training(run):
    folder, data, result = run
    other = dataclasses.replace(data, mean=data.mean + 1, std=2 * data.std)
    model, normalised = load_model(folder, other)
    assert torch.equal(normalised.mean, data.mean)
    assert evaluate(model, normalised, normalised.test).accuracy == result["test_accuracy"]


def test_data_of_another_shape_and_foreign_files_are_refused(run):
    folder, data, _ = run
    split = dataclasses.replace(data.train, inputs=data.train.inputs[..., :7])
    with pytest.raises(ValueError, match="does not fit"):
        load_model(folder, dataclasses.replace(data, train=split))
    with pytest.raises(ValueError, match="its classes are"):
        load_model(folder, dataclasses.replace(data, class_names=tuple("abcdefghij")))
    path = folder / "model.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="was not written by fastff"):
        load_model(folder, data)
