"""Texts by name, and the blocks of token ids that language models are trained on."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastff.runs.open_data import DataError, open_data, string_columns

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

_CHUNK = 10_000  # characters
_CHUNKS_AT_ONCE = 100  # the tokenizer keeps about 100 bytes for each token
_BATCH = 2**20  # bytes
_FORMAT = 1  # of the cache: to be raised when the same arguments give other blocks
_CUT = re.compile(r"\s(?=\S)")  # a tokenizer puts at most the last white space to the word that follows


def texts(data: str, split: str, text_column: str | None = None) -> Iterator[str]:
    """The documents of a split, in order, in chunks of about 10,000 characters that together are the text.

    `data`, `text_column` and the errors are those of `pack`.
    """
    table, column = _text(data, open_data(data)[0], split, text_column)
    batches = table.iter(_batch_size(table))
    return (part for batch in batches for text in _documents(batch[column]) for part in chunks(text))


def pack(
    data: str,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    *,
    split: str,
    text_column: str | None = None,
    special: bool,
    limit: int | None = None,
    cache: Path | None = None,
) -> Dataset:
    """The documents of a split as token ids, end to end, cut into blocks: rows of `length` `input_ids` (int32).

    `data` is a local folder or a .parquet, .csv, .json, .jsonl or .txt file (a .txt file is one document), or a hub id.
    The text is in `text_column`; by default in the column called text, else in the only column of strings. A separator
    ends each document: with `special`, for masked language models, the tokenizer's SEP, and each block is [CLS], length
    - 2 ids, [SEP]; otherwise its EOS, or SEP where it has none. What is left over at the end fills no block and is
    dropped. Rows are in the order of the text; with `limit`, only the first `limit`.

    Data without a validation split give the last 1 % of the blocks of train, at least one, to validation.

    The blocks are memory-mapped from a file in `cache`, by default in the cache of `datasets`; the same data, tokenizer
    and `length` find it again, in other processes, too.

    Raises:
        DataError: the data cannot be loaded, or have no such split, no text column, or no more text than for one block.
        ValueError: `length` or `limit` is out of range, or the tokenizer lacks a token that is needed.
    """
    for name, value, least in (("length", length, 3 if special else 1), ("limit", limit, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}: {value!r}; expected an integer of at least {least}")
    splits, _ = open_data(data)
    shared = "validation" not in splits and "train" in splits and split in ("train", "validation")
    table, column = _text(data, splits, "train" if shared else split, text_column)
    blocks = _blocks(table, column, tokenizer, length, special, cache)
    where = f"data {data!r}, split {split!r}, column {column!r}"
    least = 2 if shared else 1
    if len(blocks) < least:
        why = ", as the data have no validation split" if shared else ""
        raise DataError(f"{where}: tokens for {len(blocks)} blocks of {length}; expected {least} or more{why}")
    kept = range(len(blocks))
    if shared:
        cut = len(blocks) - max(1, len(blocks) // 100)
        kept = kept[:cut] if split == "train" else kept[cut:]
    return blocks.select(kept[:limit])


def chunks(text: str) -> Iterator[str]:
    """The text in pieces of 10,000 characters or a little more, cut before white space that a word follows.

    A tokenizer's time for one long text grows faster than the text. Without white space, a cut is made at 20,000.
    """
    start = 0
    while len(text) - start > 2 * _CHUNK:
        found = _CUT.search(text, start + _CHUNK, start + 2 * _CHUNK)
        end = found.start() if found else start + 2 * _CHUNK
        yield text[start:end]
        start = end
    yield text[start:]


def _text(data: str, splits: dict[str, Any], split: str, text_column: str | None) -> tuple[Dataset, str]:
    """The split with its text column alone, and that column's name."""
    if split not in splits:
        raise DataError(f"data {data!r}: no split {split!r}; its splits are {', '.join(splits)}")
    table = splits[split]
    strings = string_columns(table)
    column = text_column or ("text" if "text" in strings or len(strings) != 1 else strings[0])
    if column not in strings:
        asked = f"text_column {text_column!r}" if text_column else "'text', or a single column of strings,"
        found = ", ".join(table.column_names)
        raise DataError(f"data {data!r}, split {split!r}: {asked} is not among its columns of strings; it has {found}")
    return table.select_columns(column), column


def _documents(batch: Iterable[str | None]) -> Iterator[str]:
    """Those with anything but white space."""
    return (text for text in batch if text and not text.isspace())


def _batch_size(table: Dataset) -> int:
    """Rows of about a mebibyte of text together."""
    return max(1, min(10_000, _BATCH * len(table) // max(1, table.data.nbytes)))


def _blocks(
    table: Dataset, column: str, tokenizer: PreTrainedTokenizerFast, length: int, special: bool, cache: Path | None
) -> Dataset:
    """All blocks of the split, from the cache or made now."""
    import datasets

    first, separator = _special_ids(tokenizer, special)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # set by every call of a tokenizer
        backend.pop(state, None)
    # datasets' own fingerprint of a tokenizer is not the same in another process.
    key = json.dumps([_FORMAT, table._fingerprint, column, backend, first, separator, length, special])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    ids = datasets.List(datasets.Value("int32"), length=length)
    with _progress_on_a_terminal():
        return table.map(
            _Packer(tokenizer, length, first, separator),
            input_columns=column,
            batched=True,
            batch_size=_batch_size(table),
            remove_columns=[column],
            features=datasets.Features({"input_ids": ids}),
            load_from_cache_file=True,
            cache_file_name=None if cache is None else str(cache / f"blocks-{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            desc="tokenising",
        )


def _special_ids(tokenizer: PreTrainedTokenizerFast, special: bool) -> tuple[int | None, int]:
    """The id of [CLS], or None where blocks have none, and that of the separator."""
    first = tokenizer.cls_token_id if special else None
    wanted = [tokenizer.sep_token_id] if special else [tokenizer.eos_token_id, tokenizer.sep_token_id]
    separator = next((token for token in wanted if token is not None), None)
    if separator is None or (special and first is None):
        expected = "a CLS and a SEP token, as masked language models need" if special else "an EOS or SEP token"
        raise ValueError(f"tokenizer: its special tokens are {tokenizer.special_tokens_map}; expected {expected}")
    return first, separator


class _Packer:
    """Texts of a batch -> its blocks; ids that fill none wait for the next batch, so batches must come in order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int, first: int | None, separator: int) -> None:
        self.encode: Callable[..., Any] = tokenizer
        self.length, self.first, self.separator = length, first, separator
        self.rest = np.empty(0, np.int32)

    def __call__(self, batch: list[str | None]) -> dict[str, np.ndarray]:
        ids = np.concatenate([self.rest, *self.ids(_documents(batch))])
        size = self.length if self.first is None else self.length - 2
        count = len(ids) // size
        blocks, self.rest = ids[: count * size].reshape(count, size), ids[count * size :]
        if self.first is not None:
            blocks = np.pad(blocks, ((0, 0), (1, 1)), constant_values=((0, 0), (self.first, self.separator)))
        return {"input_ids": blocks}

    def ids(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        parts = chain.from_iterable(chain(((p, False) for p in chunks(text)), [("", True)]) for text in documents)
        while some := list(islice(parts, _CHUNKS_AT_ONCE)):
            encoded = self.encode(
                [part for part, _ in some],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for (_, ends), ids in zip(some, encoded["input_ids"], strict=True):
                yield np.array([self.separator] if ends else ids, np.int32)


@contextmanager
def _progress_on_a_terminal() -> Iterator[None]:
    """`open_data` has disabled the bars; a user's HF_DATASETS_DISABLE_PROGRESS_BARS stays in force."""
    import datasets

    shown = sys.stderr.isatty() and datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None
    if shown:
        datasets.enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.disable_progress_bars()
