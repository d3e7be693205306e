"""What a run learns from: the tokenizer, the endless batches of its training, and the fixed ones of its evaluation."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from fastff.hf.pretrain.budget import BudgetSettings
from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.text import CausalCollator, MaskingCollator, load_tokenizer, pack, texts, train_tokenizer

TOKENIZER_CHUNKS = 2000  # of 10,000 characters each, to train a tokenizer on

Batch = dict[str, Tensor]
Collator = Callable[[Any], Batch]


class Draw(IntEnum):
    """What random numbers are for: each has a stream of its own."""

    ORDER, TRAINING, EVALUATION, INITIALISATION = range(4)


def make_tokenizer(config: PretrainConfig) -> Any:
    """The tokenizer that the settings name, or one trained on the data."""
    name = config.tokenizer or (config.model if config.from_weights else "")
    if name:
        return load_tokenizer(name)
    kind = "wordpiece" if config.objective == "masked" else "bpe"
    return train_tokenizer(
        islice(texts(config.data, "train", config.text_column), TOKENIZER_CHUNKS), config.vocab_size, kind
    )


def make_collator(objective: str, tokenizer: Any, mask_share: float) -> Collator:
    """Makes a batch of rows. Every row has as many labels, so the mean over parts of a batch is the mean over it."""
    return MaskingCollator(tokenizer, share=mask_share) if objective == "masked" else CausalCollator()


def mixed_seed(seed: int, draw: Draw, *numbers: int) -> int:
    """A seed made of several numbers, so that neighbours give unrelated streams."""
    return int(np.random.SeedSequence((seed, draw, *numbers)).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block PyTorch's global generator of the CPU starts from `seed`; outside it has not moved."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def collate(rows: Any, indices: Tensor, collator: Collator, seed: int) -> Batch:
    """The batch of some rows of a packed data set; its masks depend on `seed` alone."""
    with seeded(seed):
        return collator([{"input_ids": ids} for ids in rows[indices.numpy()]["input_ids"]])


class TrainingBatches(IterableDataset[Batch]):
    """Without end, for each optimiser step this process's part of its batch: all its sequences in one.

    A batch depends on the settings, the sequences before it, the number of its step and the process alone, so a resumed
    run goes on with the one that it would have had. The data go round as often as needed, in another order each time.

    Args:
        rows: a packed data set, formatted as tensors.
        collator: makes a batch of rows.
        progress: of the run; asked for the size of each batch.
        process, processes: which part is to be taken.
    """

    def __init__(self, rows: Any, collator: Collator, progress: Progress, process: int, processes: int) -> None:
        self.rows, self.collator, self.progress = rows, collator, progress
        self.process, self.processes = process, processes
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            size, p = self.progress.begin_step(), self.progress
            mine = self.indices(p.sequences, size)[self.process :: self.processes]
            yield collate(
                self.rows, mine, self.collator, mixed_seed(p.config.seed, Draw.TRAINING, p.step, self.process)
            )

    def first(self, tokens: int) -> Batch:
        """The first sequences of the run that have so many tokens together, for what is set from data before it."""
        config = self.progress.config
        indices = self.indices(0, math.ceil(tokens / config.length))
        return collate(self.rows, indices, self.collator, mixed_seed(config.seed, Draw.INITIALISATION))

    def indices(self, start: int, count: int) -> Tensor:
        """The rows of `count` sequences after the first `start` of the run."""
        parts = []
        while count:
            epoch, offset = divmod(start, len(self.rows))
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mixed_seed(self.progress.config.seed, Draw.ORDER, epoch))
                self._epoch, self._order = epoch, torch.randperm(len(self.rows), generator=generator)
            parts.append(self._order[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


class EvaluationRows(Dataset[Batch]):
    """The validation sequences, masked once, so that all evaluations of all runs with that seed are of the same."""

    def __init__(self, rows: Any, collator: Collator, seed: int) -> None:
        self.batch = collate(rows, torch.arange(len(rows)), collator, mixed_seed(seed, Draw.EVALUATION))

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> Batch:
        return {name: values[index] for name, values in self.batch.items()}


def packed(config: BudgetSettings, tokenizer: Any, split: str, special: bool, limit: int | None = None) -> Any:
    """The sequences of a split, formatted as tensors; `special`: between CLS and SEP."""
    column = config.text_column
    rows = pack(config.data, tokenizer, config.length, split=split, text_column=column, special=special, limit=limit)
    return rows.with_format("torch")
