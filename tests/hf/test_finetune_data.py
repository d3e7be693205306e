"""What fine-tuning takes from data: columns, classes, splits; and what it refuses."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from fastff.hf.finetune import FinetuneConfig
from fastff.hf.finetune.data import encode, load_task
from fastff.hf.text import train_tokenizer
from fastff.runs.open_data import DataError

TEXTS = [f"text number {i}" for i in range(20)]
CLASSES = [i % 2 for i in range(20)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def parquet(folder: Path, labels: Any = None, **splits: dict[str, list[Any]]) -> str:
    """A folder of data; `labels`: the feature of the column label."""
    for split, columns in splits.items():
        table = datasets.Dataset.from_dict(columns)
        table = table.cast_column("label", labels) if labels else table
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def config(data: str, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(data=data, **changes)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["sentence"], ["sentence"]),
        (["sentence1", "sentence2"], ["sentence1", "sentence2"]),
        (["hypothesis", "premise"], ["premise", "hypothesis"]),
        (["url", "title", "text"], ["text"]),
        (["title", "body"], ["title", "body"]),
    ],
)
def test_columns_of_texts_are_found(tmp_path: Path, columns: list[str], expected: list[str]) -> None:
    rows = {name: [f"{name} {text}" for text in TEXTS] for name in columns} | {"label": CLASSES, "idx": CLASSES}
    task = load_task(config(parquet(tmp_path, train=rows, validation=rows)))
    assert task.text_columns == expected
    assert task.train.column_names == [*expected, "labels"]
    assert task.validation[3] == {name: f"{name} {TEXTS[3]}" for name in expected} | {"labels": 1}


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = {"a": TEXTS, "b": TEXTS, "c": TEXTS, "label": [0] * 20, "stars": CLASSES}
    data = parquet(tmp_path, train=rows)
    task = load_task(config(data, text_column="c,a", label_column="stars"))
    assert task.text_columns == ["c", "a"]
    assert task.classes == ["0", "1"]
    for wrong, message in (
        ({"text_column": "d"}, "text_column 'd' is not among its columns of strings; it has a, b, c, label, stars"),
        ({"text_column": "a", "label_column": "d"}, "label_column 'd'; expected one of its columns a, b, c, label"),
        ({"text_column": "a"}, "label_column 'label': its classes are 0; expected at least two"),
        ({}, "columns of strings are a, b, c; expected one or two"),
    ):
        with pytest.raises(DataError, match=message):
            load_task(config(data, **wrong))


def test_a_pair_is_one_sequence_cut_to_the_length() -> None:
    tokenizer = train_tokenizer(TEXTS, 60, "wordpiece")
    rows = datasets.Dataset.from_dict({"a": ["text text"], "b": ["number number"], "labels": [1]})
    (row,) = encode(rows, ["a", "b"], tokenizer, 6)
    assert set(row) == {"input_ids", "attention_mask", "labels"}
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert len(tokens) == 6
    assert (tokens[0], tokens.count("[SEP]"), tokens[-1]) == ("[CLS]", 2, "[SEP]")


@pytest.mark.parametrize(
    ("values", "feature", "classes", "numbers"),
    [
        ([5, -1, 5, 9], None, ["-1", "5", "9"], [1, 0, 1, 2]),
        (["no", "yes", "no", "maybe"], None, ["maybe", "no", "yes"], [1, 2, 1, 0]),
        ([True, False, True, True], None, ["False", "True"], [1, 0, 1, 1]),
        ([1, 0, 1, 1], datasets.ClassLabel(names=["z", "a", "never"]), ["z", "a", "never"], [1, 0, 1, 1]),
    ],
)
def test_labels_are_numbered(
    tmp_path: Path, values: list[Any], feature: Any, classes: list[str], numbers: list[int]
) -> None:
    rows = {"text": TEXTS[:4], "label": values}
    task = load_task(config(parquet(tmp_path, feature, train=rows, validation=rows)))
    assert task.classes == classes
    assert task.validation["labels"][:] == numbers
    assert dict(zip(task.train["text"], task.train["labels"], strict=True)) == dict(
        zip(TEXTS[:4], numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([0.0, 1.5], [0.0, 1.5], "label_column 'label': numbers to be predicted, a regression; expected classes"),
        ([[0], [1]], [[0], [1]], "label_column 'label': of type List; expected classes"),
        ([0, 1], [0, -1], r"split 'validation', label_column 'label': -1; expected one of the classes of train, 0, 1"),
        ([0, None], [0, 1], "split 'train', column 'label': 1 of 2 rows are empty; expected none"),
        ([1, 1], [1, 1], "label_column 'label': its classes are 1; expected at least two"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, train: list[Any], validation: list[Any], message: str
) -> None:
    splits = {"train": train, "validation": validation}
    data = parquet(tmp_path, **{split: {"text": TEXTS[:2], "label": labels} for split, labels in splits.items()})
    with pytest.raises(DataError, match=message) as caught:
        load_task(config(data))
    assert f"data {data!r}" in str(caught.value)


def test_a_hidden_class_and_a_missing_text_are_refused(tmp_path: Path) -> None:
    rows = {"text": TEXTS[:2], "label": [0, 1]}
    feature = datasets.ClassLabel(names=["a", "b"])
    data = parquet(tmp_path, feature, train=rows, validation={"text": TEXTS[:2], "label": [1, -1]})
    with pytest.raises(DataError, match=r"label_column 'label': -1; .*\(the labels of a test set are often hidden\)"):
        load_task(config(data))
    data = parquet(tmp_path, train={"text": ["a", None], "label": [0, 1]})
    with pytest.raises(DataError, match="column 'text': 1 of 2 rows are empty"):
        load_task(config(data))


def test_validation_is_its_split_or_a_tenth_of_train_and_never_the_test_split(tmp_path: Path) -> None:
    rows = {"text": TEXTS, "label": CLASSES}
    other = {"text": ["other", "texts"], "label": [0, 1]}
    hidden = {"text": ["hidden"], "label": [7]}
    mnli = load_task(config(parquet(tmp_path / "m", train=rows, validation_matched=other, test=hidden)))
    assert mnli.validation["text"][:] == ["other", "texts"]
    assert sorted(mnli.train["text"]) == sorted(TEXTS)
    cut = [load_task(config(parquet(tmp_path / "cut", train=rows, test=hidden), limit=n)) for n in (None, 5)]
    assert [(len(task.train), len(task.validation)) for task in cut] == [(18, 2), (5, 2)]
    assert sorted([*cut[0].train["text"], *cut[0].validation["text"]]) == sorted(TEXTS)
    assert cut[1].validation["text"][:] == cut[0].validation["text"][:]
    assert cut[1].train["text"][:] == cut[0].train["text"][:5]
    assert cut[1].train["text"][:] != TEXTS[:5]  # a file is often sorted
    with pytest.raises(DataError, match="no split 'train'; its splits are test"):
        load_task(config(parquet(tmp_path / "t", test=rows)))
