"""Fine-tuning of sequence classifiers with the layers of `fastff`, several side by side, on Hugging Face's Trainer."""

from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.finetune.run import finetune
from fastff.runs.interrupts import Interrupted

__all__ = ["FinetuneConfig", "Interrupted", "finetune"]
