"""Any model of Transformers with its feedforward layers replaced, and saved and loaded as any other.

    model = replace_feedforward(AutoModelForCausalLM.from_pretrained(folder), "tree:depth=6,leaf_width=1,trees=8")
    model.save_pretrained(other)
    model = AutoModelForCausalLM.from_pretrained(other)  # wherever fastff.hf has been imported

Without that import Transformers warns of an unknown quantization type, and loads dense layers with random weights.
"""

from fastff.hf.replace.config import FeedForwardConfig
from fastff.hf.replace.exchange import replace_feedforward
from fastff.hf.replace.find import feedforward_modules
from fastff.hf.replace.function import FeedForwardFunction
from fastff.hf.replace.quantizer import FeedForwardQuantizer

__all__ = [
    "FeedForwardConfig",
    "FeedForwardFunction",
    "FeedForwardQuantizer",
    "feedforward_modules",
    "replace_feedforward",
]
