"""The task: texts or pairs of texts with a class, for training and for validation. No test split is looked at."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch

from fastff.hf.finetune.config import FinetuneConfig
from fastff.runs.open_data import DataError, open_data, string_columns

# Of GLUE and its like; the first whose columns are all there are the texts.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "labels")
VALIDATION = ("validation", "validation_matched")  # the second: MNLI
VALIDATION_SHARE = 0.1  # of train, where there is no such split


@dataclass(frozen=True)
class Task:
    """What is to be learnt.

    Attributes:
        text_columns: one or two.
        classes: their names.
        train, validation: data sets with the text columns and `labels`, int.
    """

    text_columns: list[str]
    classes: list[str]
    train: Any
    validation: Any


def load_task(config: FinetuneConfig) -> Task:
    """The task of the data that `config` names, with `config.limit` training samples at most.

    Raises:
        DataError: the data cannot be loaded, or lack a split, a column or labels that are classes.
    """
    splits, _ = open_data(config.data)
    where = f"data {config.data!r}"
    if "train" not in splits:
        raise DataError(f"{where}: no split 'train'; its splits are {', '.join(splits)}")
    train = splits["train"]
    texts = _text_columns(config, train, where)
    label = _label_column(config, train, where)
    validation_split = next((name for name in VALIDATION if name in splits), None)
    parts = {"train": train} | ({validation_split: splits[validation_split]} if validation_split else {})
    values = {split: _values(table, texts, label, f"{where}, split {split!r}") for split, table in parts.items()}
    classes, numbers = _classes(train.features[label], values["train"], f"{where}, label_column {label!r}")
    tables = []
    for split, table in parts.items():
        unknown = sorted(set(values[split]) - numbers.keys())
        if unknown:
            raise DataError(
                f"{where}, split {split!r}, label_column {label!r}: {unknown[0]!r}; expected one of the classes of "
                f"train, {', '.join(map(str, numbers))} (the labels of a test set are often hidden)"
            )
        tables.append(table.select_columns(texts).add_column("labels", [numbers[value] for value in values[split]]))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    if validation_split is None:
        cut = max(1, int(VALIDATION_SHARE * len(order)))
        tables.append(tables[0].select(order[:cut]))
        order = order[cut:]
    elif not len(tables[1]):
        raise DataError(f"{where}, split {validation_split!r}: no rows; expected at least one")
    return Task(texts, classes, tables[0].select(order[: config.limit]), tables[1])


def encode(rows: Any, text_columns: list[str], tokenizer: Any, length: int) -> Any:
    """The rows as token ids of at most `length`, in memory, with their labels."""

    def encoded(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[column] for column in text_columns]
        return dict(tokenizer(*texts, truncation=True, max_length=length))

    return rows.map(encoded, batched=True, remove_columns=text_columns, keep_in_memory=True)


def _text_columns(config: FinetuneConfig, table: Any, where: str) -> list[str]:
    strings = string_columns(table)
    for column in config.text_columns:
        if column not in strings:
            found = ", ".join(table.column_names)
            raise DataError(f"{where}: text_column {column!r} is not among its columns of strings; it has {found}")
    if config.text_columns:
        return config.text_columns
    known = next((columns for columns in TEXT_COLUMNS if set(columns) <= set(strings)), None)
    if known:
        return list(known)
    others = [column for column in strings if column != config.label_column and column not in LABEL_COLUMNS]
    if not 1 <= len(others) <= 2:
        raise DataError(
            f"{where}: columns of strings are {', '.join(others) or 'none'}; expected one or two, or those of GLUE "
            "(sentence, sentence1 and sentence2, ...), or text_column"
        )
    return others


def _label_column(config: FinetuneConfig, table: Any, where: str) -> str:
    names = (config.label_column,) if config.label_column else LABEL_COLUMNS
    found = [name for name in names if name in table.features]
    if not found and not config.label_column:
        found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) != 1:
        asked = f"label_column {config.label_column!r}" if config.label_column else "no single column of labels"
        raise DataError(
            f"{where}: {asked}; expected one of its columns {', '.join(table.column_names)}, such as 'label'"
        )
    return found[0]


def _values(table: Any, texts: list[str], label: str, where: str) -> list[Any]:
    """The labels as they stand in a split in which nothing is missing."""
    for column in (*texts, label):
        nulls = table.data.column(column).null_count
        if nulls:
            raise DataError(f"{where}, column {column!r}: {nulls} of {len(table)} rows are empty; expected none")
    return table[label][:]


def _classes(feature: Any, values: list[Any], where: str) -> tuple[list[str], dict[Any, int]]:
    """The names of the classes, and the number of each value."""
    if isinstance(feature, datasets.ClassLabel):
        names, numbers = list(feature.names), {i: i for i in range(feature.num_classes)}
    else:
        dtype = getattr(feature, "dtype", type(feature).__name__)
        if not dtype.startswith(("int", "uint", "bool", "string", "large_string")):
            what = "numbers to be predicted, a regression" if dtype.startswith("float") else f"of type {dtype}"
            raise DataError(f"{where}: {what}; expected classes (ClassLabel, integers or strings)")
        numbers = {value: i for i, value in enumerate(sorted(set(values)))}
        names = [str(value) for value in numbers]
    if len(names) < 2:
        raise DataError(f"{where}: its classes are {', '.join(names) or 'none'}; expected at least two")
    return names, numbers
