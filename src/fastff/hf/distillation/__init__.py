"""Distillation: new feedforward layers in a pretrained model, taught what the original does."""

from fastff.hf.distillation.config import DistilConfig
from fastff.hf.distillation.models import load_distilled
from fastff.hf.distillation.run import distil
from fastff.runs.interrupts import Interrupted

__all__ = ["DistilConfig", "Interrupted", "distil", "load_distilled"]
