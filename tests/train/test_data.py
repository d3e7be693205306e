"""Classification data by name: splits, columns, labels, the cache, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fastff.train.data import Data, DataError, load_data
from fastff.train.data import tables as module


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    monkeypatch.setenv("FASTFF_CACHE", str(tmp_path_factory.mktemp("fastff")))


def parquet(folder: Path, **splits: dict[str, list]) -> str:
    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict(columns, features if "image" in columns else None)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def image_split(count: int, mode: str = "L", size: tuple[int, int] = (3, 2)) -> dict[str, list]:
    """Sample i has the value i everywhere and the label i mod 3."""
    images = [Image.new("L", size, index).convert(mode) for index in range(count)]
    return {"image": images, "label": [index % 3 for index in range(count)]}


def firsts(data: Data, split: str) -> list[int]:
    return getattr(data, split).inputs.flatten(1)[:, 0].int().tolist()


def test_digits_are_the_same_splits_for_every_seed() -> None:
    data, other = load_data("digits"), load_data("digits", seed=7)
    assert (len(data.train), len(data.validation), len(data.test)) == (1200, 240, 357)
    assert (data.shape, data.features, data.classes, data.class_names[9]) == ((1, 8, 8), 64, 10, "9")
    assert (data.train.inputs.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 255)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(data, split).inputs, getattr(other, split).inputs)
    normal = data.normalise(data.train.inputs)
    assert normal.dtype == torch.float32
    moments = torch.stack([normal.mean(), normal.std(correction=0)])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_importing_the_module_imports_no_data_library() -> None:
    code = "import sys, fastff.train.data; sys.exit(any(m in sys.modules for m in ('datasets', 'sklearn', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_images_keep_their_pixels_and_are_normalised(tmp_path: Path, mode: str, channels: int) -> None:
    data = load_data(parquet(tmp_path / "d", train=image_split(20, mode), test=image_split(5)), validation=4)
    assert data.shape == (channels, 2, 3)
    assert (firsts(data, "train"), firsts(data, "validation")) == ([*range(16)], [*range(16, 20)])
    assert firsts(data, "test") == [*range(5)]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1]
    expected = torch.arange(16.0) / 255
    torch.testing.assert_close(data.mean, expected.mean().expand(channels, 1, 1))
    torch.testing.assert_close(data.std, expected.std(correction=0).expand(channels, 1, 1))


def test_splits(tmp_path: Path) -> None:
    both = parquet(tmp_path / "both", train=image_split(30), validation=image_split(7), test=image_split(5))
    assert len(load_data(both).validation) == 7
    assert firsts(load_data(both, validation=0.1), "validation") == [27, 28, 29]
    limited = load_data(both, limit=6)
    assert firsts(limited, "train") == [*range(6)]
    assert firsts(limited, "validation") == [*range(7)]
    assert firsts(limited, "test") == [*range(5)]
    no_test = load_data(parquet(tmp_path / "no_test", train=image_split(30), validation=image_split(7)))
    assert (len(no_test.train), len(no_test.validation), len(no_test.test)) == (27, 3, 7)
    alone = parquet(tmp_path / "alone", train=image_split(30))
    data, other = load_data(alone), load_data(alone, seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    assert sorted(firsts(data, "train") + firsts(data, "validation") + firsts(data, "test")) == [*range(30)]
    assert firsts(data, "test") == firsts(other, "test") != [*range(24, 30)]


def test_an_image_folder_sorted_by_class_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for index, picture in enumerate(image_split(count, "RGB")["image"]):
                picture.save(tmp_path / "d" / split / name / f"{index:02}.png")
    data, again, other = (load_data(str(tmp_path / "d"), validation=20, seed=seed) for seed in (0, 0, 1))
    assert (data.class_names, data.shape, len(data.test)) == (("cat", "dog"), (3, 2, 3), 4)
    assert data.validation.labels.unique().tolist() == [0, 1]
    assert firsts(data, "train") == firsts(again, "train") != firsts(other, "train")
    assert firsts(data, "test") == firsts(other, "test")


def test_csv_vectors_are_all_numeric_columns_and_labels_can_be_names(tmp_path: Path) -> None:
    rows = "".join(f"{i},note,{i / 2},7,{'ba'[i % 2]}\n" for i in range(10))
    (tmp_path / "d.csv").write_text("x,text,z,same,target\n" + rows)
    data = load_data(str(tmp_path / "d.csv"), validation=2)
    assert (data.shape, data.classes, data.class_names) == ((3,), 2, ("a", "b"))
    inputs, labels = data.train.inputs, data.train.labels
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[:, 1] * 2, inputs[:, 0])
    assert torch.equal(labels, 1 - inputs[:, 0].long() % 2)
    assert data.std[2] == 1
    torch.testing.assert_close(data.normalise(inputs)[:, :2].std(0, correction=0), torch.ones(2))
    assert load_data(str(tmp_path / "d.csv"), input_column="z").shape == (1,)


@pytest.mark.parametrize("feature", [None, datasets.Array2D((2, 3), "float32")])
def test_nested_lists_are_flattened_and_whole_float_labels_are_classes(tmp_path: Path, feature: object) -> None:
    values = np.arange(60.0).reshape(10, 2, 3)
    columns = {"features": values.tolist(), "label": [float(index % 2) for index in range(10)]}
    features = feature and datasets.Features({"features": feature, "label": datasets.Value("float64")})
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "d.parquet")
    data = load_data(str(tmp_path / "d.parquet"))
    assert (data.shape, data.classes) == ((6,), 2)
    assert torch.equal(data.test.inputs - data.test.inputs[:, :1], torch.arange(6.0).expand(2, 6))


def test_the_cache_is_read_and_a_damaged_one_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_ABOVE", 10)
    name = parquet(tmp_path / "d", train=image_split(20, "RGB"), test=image_split(5))
    first = load_data(name)
    (file,) = (Path(os.environ["FASTFF_CACHE"]) / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    second = load_data(name)
    assert [*file.parent.iterdir()] == [file]
    monkeypatch.setattr(module, "read_images", lambda *_: pytest.fail("decoded in spite of the cache"))
    for data in (second, load_data(name)):
        assert torch.equal(data.train.inputs, first.train.inputs)
        assert torch.equal(data.test.labels, first.test.labels)
        assert data.class_names == first.class_names


VECTORS = "a,b,label\n0,1,0\n1,1,1\n2,1,0\n"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (VECTORS, "a,b,label\n1,1,0\n1,1,2\n", r"split 'test', row 1: label 2 .* 0 to 1"),
        (VECTORS.replace("2,1,0", "2,1,-3"), VECTORS, r"split 'train', row 2: label -3 "),
        (VECTORS.replace("2,1,0", "2,1,0.5"), VECTORS, r"split 'train', row 2: label 0.5 .* whole number"),
        (VECTORS.replace("2,1,0", "2,1,"), VECTORS, r"split 'train', row 2: label None "),
        (VECTORS.replace("2,1,0", "2,1,9000000000"), VECTORS, r"row 2: label 9000000000 "),
        ("a,label\n1,p\n2,q\n3,p\n", "a,label\n1,r\n", r"split 'test', row 0: label 'r' .* training split has"),
        (VECTORS.replace("0,1,0", "0,1.5,0"), "a,b,label\n1,inf,1\n", r"'test', row 0: column 'b', index 0, is inf"),
        (VECTORS.replace("1,1,1", ",1,1"), VECTORS, r"split 'train', row 1: column 'a', index 0, is nan"),
        (VECTORS.replace("label", "class"), VECTORS.replace("label", "class"), r"label column .* columns a, b, class"),
        ("text,label\nu,0\nv,1\nw,0\n", "text,label\nu,0\n", r"numeric columns alone, is not among its columns text "),
        (VECTORS, "a,b,label\n", r"\"test\" corresponds to no data"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, train: str, test: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text(test)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


def test_unusable_images_and_lists_are_refused(tmp_path: Path) -> None:
    mixed = image_split(3) | {"image": image_split(2)["image"] + image_split(1, size=(4, 4))["image"]}
    with pytest.raises(DataError, match=r"split 'train', row 2: an image of 4x4 pixels; row 0 has 2x3"):
        load_data(parquet(tmp_path / "mixed", train=mixed))
    with pytest.raises(DataError, match=r"split 'test', row 0: samples have the shape \(1, 4, 4\).*\(1, 2, 3\)"):
        load_data(parquet(tmp_path / "sizes", train=image_split(5), test=image_split(5, size=(4, 4))))
    broken = {"image": [{"bytes": b"no picture", "path": None}] * 3, "label": [0, 1, 0]}
    with pytest.raises(DataError, match=r"split 'train', row 0: column 'image' has no usable image"):
        load_data(parquet(tmp_path / "broken", train=broken))
    with pytest.raises(DataError, match=r"split 'train', row 1: column 'x' has a list of 1 values"):
        load_data(parquet(tmp_path / "ragged", train={"x": [[1.0, 2.0], [1.0], [2.0, 3.0]], "y": [0, 1, 0]}))
    text = {"sentence": ["u", "v", "w"], "label": [0, 1, 0], "idx": [0, 1, 2]}
    with pytest.raises(DataError, match=r"not among its columns sentence, idx"):
        load_data(parquet(tmp_path / "text", train=text))
    with pytest.raises(DataError, match=r"no training split; its splits are test"):
        load_data(parquet(tmp_path / "test_only", test=image_split(5)))


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/no/where", "gone.parquet", ""])
def test_missing_paths_are_refused_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataError, match=rf"{name!r}: no such file or folder"):
        load_data(name)


def test_a_hub_id_that_cannot_be_loaded_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=ConnectionError("Couldn't reach the Hub\nmore")))
    with pytest.raises(DataError, match=r"^data 'some/thing': cannot be loaded .*: Couldn't reach the Hub$"):
        load_data("some/thing")


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"validation": 1200}, {"validation": 0}, {"validation": 1.5}])
def test_arguments_out_of_range_are_named(arguments: dict) -> None:
    with pytest.raises(ValueError, match="^{}: {}".format(*next(iter(arguments.items())))):
        load_data("digits", **arguments)
