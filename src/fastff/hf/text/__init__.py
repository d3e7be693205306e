"""Text for language models: tokenizers, blocks of token ids, batches."""

from fastff.hf.text.blocks import pack, texts
from fastff.hf.text.masking import CausalCollator, MaskingCollator
from fastff.hf.text.tokenizer import load_tokenizer, train_tokenizer

__all__ = ["CausalCollator", "MaskingCollator", "load_tokenizer", "pack", "texts", "train_tokenizer"]
