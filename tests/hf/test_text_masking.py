"""Batches for masked and causal language models: how many positions, what becomes of them, padding."""

from __future__ import annotations

import pickle

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fastff.hf.text import CausalCollator, MaskingCollator, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["abcdefghijklmnopqrstuvwxyz " * 5], 80, "wordpiece")


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [2, *range(10, 8 + length), 3]} for length in lengths]


@pytest.mark.parametrize(("share", "length", "drawn"), [(0.25, 128, 32), (0.25, 10, 2), (0.15, 30, 4), (1.0, 9, 9)])
def test_each_row_has_exactly_the_share(
    tokenizer: PreTrainedTokenizerFast, share: float, length: int, drawn: int
) -> None:
    given = rows(*[length] * 64)
    batch = MaskingCollator(tokenizer, share)(given)
    assert set(batch) == {"input_ids", "labels"}
    ids_BS, chosen_BS = torch.tensor([row["input_ids"] for row in given]), batch["labels"] != -100
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert chosen_BS.sum(1).tolist() == [drawn] * 64
    assert torch.equal(batch["labels"][chosen_BS], ids_BS[chosen_BS])
    assert torch.equal(batch["input_ids"][~chosen_BS], ids_BS[~chosen_BS])


def test_positions_and_fates_have_their_shares(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    given = [{"input_ids": [2, *[10] * 126, 3]}] * 4000
    batch = MaskingCollator(tokenizer)(given)
    ids_BS, chosen_BS = torch.tensor([row["input_ids"] for row in given]), batch["labels"] != -100
    share_S = chosen_BS.double().mean(0)  # the first and last, special tokens, are drawn like all others
    assert (share_S - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    count = int(chosen_BS.sum())
    masked = chosen_BS & (batch["input_ids"] == tokenizer.mask_token_id)
    same = chosen_BS & (batch["input_ids"] == ids_BS)
    other = chosen_BS & ~masked & ~same
    vocabulary = len(tokenizer)
    for part, expected in (
        (masked, 0.8 + 0.1 / vocabulary),
        (same, 0.1 + 0.1 / vocabulary),
        (other, 0.1 - 0.2 / vocabulary),
    ):
        assert abs(int(part.sum()) / count - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    counts_V = torch.bincount(batch["input_ids"][other], minlength=vocabulary)
    assert (counts_V == 0).nonzero().flatten().tolist() == [tokenizer.mask_token_id]
    per_row = masked.sum(1).double()  # independent draws: binomial, not 80 % of each row
    assert per_row.var() == pytest.approx(32 * 0.8 * 0.2, rel=0.15)


def test_padding_is_never_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [4, 40, 20, 6] * 50
    given = rows(*lengths)
    batch = MaskingCollator(tokenizer)(given)
    real_BS = torch.arange(40) < torch.tensor(lengths)[:, None]
    assert torch.equal(batch["attention_mask"], real_BS.long())
    assert (batch["input_ids"][~real_BS] == tokenizer.pad_token_id).all()
    assert (batch["labels"][~real_BS] == -100).all()
    assert (batch["labels"] != -100).sum(1).tolist() == [round(0.25 * length) for length in lengths]


def test_the_global_seed_decides(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = pickle.loads(pickle.dumps(MaskingCollator(tokenizer)))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(collator(rows(50, 50))["input_ids"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_causal_labels_are_a_copy() -> None:
    batch = CausalCollator()(rows(5, 5))
    assert batch["labels"].tolist() == [row["input_ids"] for row in rows(5, 5)]
    batch["input_ids"][:] = 0
    assert (batch["labels"] > 0).all()
    with pytest.raises(ValueError, match="rows of 4 to 5 input_ids; expected equal lengths"):
        CausalCollator()(rows(4, 5))


def test_what_cannot_mask_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="share: 25; expected a number above 0 and at most 1"):
        MaskingCollator(tokenizer, 25)
    with pytest.raises(ValueError, match="tokenizer: no mask token"):
        MaskingCollator(train_tokenizer(["some text"], 257, "bpe"))
