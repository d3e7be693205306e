"""What a distilled model has kept, on validation data."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastff.hf.distillation.distiller import Distiller, cosine, pooled


@torch.no_grad()
def measure(distiller: Distiller, rows: Dataset[dict[str, Tensor]], batch_size: int) -> dict[str, Any]:
    """Compare the student with its teacher.

    Args:
        distiller: in eval mode, with both.
        rows: a batch of validation data as one data set.
        batch_size: sequences at once.

    Returns:
        "missed", by layer, the share of its output's variance that it misses, on the teacher's inputs; "missed_mean",
        their mean; "kept", of each figure the teacher's and the student's: the loss of a language model, nats a token,
        or the cosine of the embeddings with the teacher's.
    """
    device = next(distiller.parameters()).device
    batch: dict[str, Tensor] = rows.batch  # type: ignore[attr-defined]
    sums: dict[str, float] = {}
    pairs = torch.zeros(2)
    count, parts = 0, len(batch["input_ids"])
    for first in range(0, parts, batch_size):
        part = {name: values[first : first + batch_size].to(device) for name, values in batch.items()}
        labels = part.pop("labels", None)
        mask_BS = part.setdefault("attention_mask", torch.ones_like(part["input_ids"]))
        size = len(mask_BS)
        for name, share in distiller.missed_by_layer(part, mask_BS.bool()).items():
            sums[name] = sums.get(name, 0.0) + size * share.item()
        if distiller.objective == "embedding":
            embeddings = [pooled(model(**part).last_hidden_state, mask_BS) for model in distiller.models]
            pairs += size * torch.tensor([1.0, cosine(*embeddings).item()])
        else:
            pairs += size * torch.tensor([model(**part, labels=labels).loss.item() for model in distiller.models])
        count += size
    missed = {name: total / count for name, total in sums.items()}
    name = "cosine with the original" if distiller.objective == "embedding" else f"{distiller.objective} loss"
    kept = {name: (pairs / count).tolist()}
    return {"missed": missed, "missed_mean": sum(missed.values()) / len(missed), "kept": kept}
