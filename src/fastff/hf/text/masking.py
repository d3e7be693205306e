"""Batches for masked and causal language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_IGNORED = -100  # the label that a loss of PyTorch leaves out


@dataclass
class MaskingCollator:
    """Rows with `input_ids` -> a batch for masked language models, masked as in Geiping and Goldstein's "Cramming".

    Of a row of S ids, round(share * S) positions are drawn without replacement, special tokens not excepted. 80 % of
    them become the mask token, 10 % a random id of the vocabulary, 10 % stay, each position drawn on its own. The
    global generator of torch decides.

    Gives `input_ids` and `labels`, (B, S) int64; labels are the original ids at the drawn positions and -100 elsewhere.
    Rows of different lengths are padded on the right, and there is `attention_mask`, too, (B, S) int64.

    Raises ValueError for a share outside (0, 1], or a tokenizer without a mask token (or a padding token, if needed).
    """

    tokenizer: PreTrainedTokenizerFast
    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share!r}; expected a number above 0 and at most 1")
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer: no mask token among {self.tokenizer.special_tokens_map}")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids_BS, lengths_B = _pad(rows, self.tokenizer.pad_token_id)
        real_BS = torch.arange(ids_BS.shape[1]) < lengths_B[:, None]
        ranks_BS = torch.rand(ids_BS.shape).masked_fill(~real_BS, 2.0).argsort(1).argsort(1)
        drawn_BS = ranks_BS < (self.share * lengths_B.double()).round()[:, None]
        fate_BS = torch.rand(ids_BS.shape)
        inputs_BS = ids_BS.masked_fill(drawn_BS & (fate_BS < 0.8), self.tokenizer.mask_token_id)
        random_BS = torch.randint(len(self.tokenizer), ids_BS.shape)
        inputs_BS = torch.where(drawn_BS & (fate_BS >= 0.8) & (fate_BS < 0.9), random_BS, inputs_BS)
        batch = {"input_ids": inputs_BS, "labels": ids_BS.masked_fill(~drawn_BS, _IGNORED)}
        return batch if real_BS.all() else batch | {"attention_mask": real_BS.long()}


class CausalCollator:
    """Rows with `input_ids`, of one length as `pack` makes them -> `input_ids` and their copy `labels`, (B, S) int64.

    The models of transformers shift the labels themselves.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids_BS, _ = _pad(rows, None)
        return {"input_ids": ids_BS, "labels": ids_BS.clone()}


def _pad(rows: Sequence[Mapping[str, Any]], pad: int | None) -> tuple[Tensor, Tensor]:
    """(B, S) int64 ids, padded on the right, and (B,) lengths."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    if pad is None:
        if (lengths != lengths[0]).any():
            raise ValueError(
                f"rows of {lengths.min()} to {lengths.max()} input_ids; expected equal lengths to pad none"
            )
        return torch.stack(ids), lengths
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad), lengths
