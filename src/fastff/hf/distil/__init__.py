"""Distillation: new feedforward layers in a pretrained model, taught what the original does."""

from fastff.hf.distil.config import DistilConfig
from fastff.hf.distil.run import distil
from fastff.runs.interrupts import Interrupted

__all__ = ["DistilConfig", "Interrupted", "distil"]
