"""Inference time of several models, measured alternately so that a busy machine is as busy for each."""

import threading
import time
from statistics import median
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel

from fastff.runs.interrupts import Interrupted

SAMPLES = 256  # at most
REPEATS = 5
BATCH_SIZES = (1, 32)

Batches = list[dict[str, torch.Tensor]]


def batches_of(rows: Any, tokenizer: Any, device: torch.device) -> dict[int, Batches]:
    """The first samples of a tokenized split by batch size, padded, without labels."""
    rows = rows.select(range(min(SAMPLES, len(rows)))).remove_columns("labels")
    samples, collate = list(rows), DataCollatorWithPadding(tokenizer)
    return {
        size: [
            {name: values.to(device) for name, values in collate(samples[i : i + size]).items()}
            for i in range(0, len(samples), size)
        ]
        for size in BATCH_SIZES
    }


@torch.inference_mode()
def inference_seconds(
    models: dict[str, tuple[PreTrainedModel, dict[int, Batches]]], interrupted: threading.Event
) -> dict[str, dict[str, float]]:
    """Seconds per 1,000 samples of each model, by batch size: the median over repeats, after one that does not count.

    Args:
        models: by label, on the device, with their batches.
        interrupted: raises Interrupted between two measurements.
    """
    seconds: dict[str, dict[str, list[float]]] = {label: {str(s): [] for s in BATCH_SIZES} for label in models}
    for repeat in range(1 + REPEATS):
        for size in BATCH_SIZES:
            for label, (model, batches) in models.items():
                if interrupted.is_set():
                    raise Interrupted
                _synchronise()
                began = time.perf_counter()
                for batch in batches[size]:
                    model(**batch)
                _synchronise()
                elapsed = time.perf_counter() - began
                if repeat:
                    samples = sum(len(batch["input_ids"]) for batch in batches[size])
                    seconds[label][str(size)].append(1000 * elapsed / samples)
    return {label: {size: median(values) for size, values in sizes.items()} for label, sizes in seconds.items()}


def _synchronise() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
