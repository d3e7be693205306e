"""Pretraining of masked and causal language models with the layers of `fastff`, on Hugging Face's Trainer."""

from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.precisions import losses_by_precision
from fastff.hf.pretrain.run import pretrain
from fastff.runs.interrupts import Interrupted

__all__ = ["Interrupted", "PretrainConfig", "losses_by_precision", "pretrain"]
