"""From the results of runs to the figures of each model."""

from typing import Any

from fastff.runs.mean_and_error import mean_and_error


def summarise_models(
    facts: dict[str, dict[str, Any]],
    results: dict[str, list[dict[str, Any]]],
    inference_seconds: dict[str, dict[str, float]],
) -> list[dict[str, Any]]:
    """One row for each model.

    Args:
        facts: by label, what the model is (see `fastff.hf.finetune.models.describe`).
        results: of its runs, one for each seed.
        inference_seconds: per 1,000 samples, by batch size.

    Returns:
        Rows of the facts; accuracy (per cent), loss and training_seconds as {"mean", "error", "values"}; accuracy_kept,
        the share of the first model's accuracy (None if that is 0); and inference_seconds.
    """
    rows: list[dict[str, Any]] = []
    for label, fact in facts.items():
        names = ("accuracy", "loss", "training_seconds")
        figures = {name: mean_and_error([result[name] for result in results[label]]) for name in names}
        first = rows[0]["accuracy"]["mean"] if rows else figures["accuracy"]["mean"]
        kept = figures["accuracy"]["mean"] / first if first else None
        rows.append({**fact, **figures, "accuracy_kept": kept, "inference_seconds": inference_seconds[label]})
    return rows
