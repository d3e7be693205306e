"""What a finished run's validation loss becomes in other precisions."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.data import EvaluationRows, make_collator, packed
from fastff.hf.pretrain.models import KINDS
from fastff.hf.text import load_tokenizer
from fastff.nn import quantize
from fastff.nn.int8_layer import Int8Layer

BATCH = 32  # sequences


def losses_by_precision(config: PretrainConfig, folder: str | Path) -> dict[str, float]:
    """Validation loss of a run, of its model in bfloat16, and with trees or product keys in int8, if it has any.

    Args:
        config: of the run.
        folder: where `pretrain` put it.

    Returns:
        "float32", "bfloat16" and perhaps "int8".

    Raises:
        ValueError: the run is not finished.
    """
    place = Path(folder)
    if not (place / "result.json").exists():
        raise ValueError(f"folder must hold a finished run, {str(folder)!r} has no result.json")
    model = KINDS[config.objective].from_pretrained(place / "model", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(place / "tokenizer"))
    rows = packed(config, tokenizer, "validation", config.objective == "masked", config.validation)
    batch = EvaluationRows(rows, make_collator(config.objective, tokenizer, config.mask_share), config.seed).batch
    found = {"float32": _loss(model, batch), "bfloat16": _loss(copy.deepcopy(model).to(torch.bfloat16), batch)}
    if any(isinstance(module, Int8Layer) for module in model.modules()):
        quantize(model)
        found["int8"] = _loss(model, batch)
    return found


@torch.no_grad()
def _loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """Mean over all sequences, which have as many labels each."""
    total, count = 0.0, len(batch["input_ids"])
    for first in range(0, count, BATCH):
        part = {name: values[first : first + BATCH] for name, values in batch.items()}
        total += float(model(**part).loss) * len(part["input_ids"])
    return total / count
