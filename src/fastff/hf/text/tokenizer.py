"""Tokenizers: trained from texts, or loaded."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_END = "<|endoftext|>"
_MOST_CHARACTERS = 1_000  # of a WordPiece vocabulary; rarer ones become [UNK]


def train_tokenizer(texts: Iterable[str], vocab_size: int, kind: str) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer.

    `kind` is "wordpiece" (BERT's: lower case without accents, [CLS] and [SEP] put around a text or pair of texts) or
    "bpe" (GPT-2's: bytes, so that every text comes back as it was; <|endoftext|> ends and pads). The texts are held in
    memory for "wordpiece"; 20 million characters are plenty.

    Raises ValueError for another kind, without any text, or where `vocab_size` has no room for the single characters.
    """
    if kind not in ("wordpiece", "bpe"):
        raise ValueError(f"kind: {kind!r}; expected 'wordpiece' or 'bpe'")
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise ValueError(f"vocab_size: {vocab_size!r}; expected an integer")
    return _wordpiece(list(texts), vocab_size) if kind == "wordpiece" else _bpe(texts, vocab_size)


def load_tokenizer(path_or_id: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or hub id; ValueError where there is none, or one without a tokenizer.json."""
    path = Path(path_or_id).expanduser()
    looks_local = path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1
    if not path_or_id.strip() or (looks_local and not path.is_dir()):
        raise ValueError(f"tokenizer {path_or_id!r}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else path_or_id)
    except Exception as error:  # whatever transformers, a parser or the network raises, the name is what can be mended
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"tokenizer {path_or_id!r}: no folder with a tokenizer.json, nor a hub id: {reason}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer {path_or_id!r}: a {type(tokenizer).__name__}; expected one with a tokenizer.json")
    return tokenizer


def _wordpiece(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    normalizer, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in normalizer.normalize_str(character).split():
            normal.update(dict.fromkeys(part, count))
    if not normal:
        raise ValueError("texts: no characters; expected texts to train a tokenizer on")
    alphabet = sorted(sorted(normal), key=lambda character: -normal[character])[:_MOST_CHARACTERS]
    # The trainer numbers the characters inside words (##x) as a hash map that differs between processes yields them,
    # and merges of equal count go by number. Named beforehand, as if they were special tokens, they have fixed numbers.
    inner = [f"##{c}" for c in alphabet if len(split.pre_tokenize_str(normalizer.normalize_str(f"a{c}"))) == 1]
    tokens = [*_BERT_TOKENS.values(), *inner]
    _check_size(vocab_size, len(tokens) + len(alphabet), f"for the {len(alphabet)} different characters of the texts")
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, split
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=sys.stderr.isatty(),
    )
    trained.train_from_iterator(texts, trainer)
    backend = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))  # here ##x is not special
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, split, decoders.WordPiece()
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return _wrap(backend, **_BERT_TOKENS)


def _bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(vocab_size, 1 + len(alphabet), f"for the {len(alphabet)} bytes and {_END}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[_END], initial_alphabet=alphabet, show_progress=sys.stderr.isatty()
    )
    backend.train_from_iterator(_some(texts), trainer)
    return _wrap(backend, bos_token=_END, eos_token=_END, pad_token=_END)


def _wrap(backend: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **tokens)


def _some(texts: Iterable[str]) -> Iterator[str]:
    any_text = False
    for text in texts:
        any_text = any_text or bool(text)
        yield text
    if not any_text:
        raise ValueError("texts: no characters; expected texts to train a tokenizer on")


def _check_size(vocab_size: int, least: int, why: str) -> None:
    if vocab_size < least:
        raise ValueError(f"vocab_size: {vocab_size}; expected at least {least} {why}")
