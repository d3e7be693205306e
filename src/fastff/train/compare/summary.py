"""From the results of single runs to the rows of a comparison: means, standard errors, and the trial that counts."""

from typing import Any

from fastff.runs.mean_and_error import mean_and_error
from fastff.train.compare.comparison import Candidate, Comparison, runs_of

# Of each run; averaged over seeds where it is a number. ETT: epochs to the best figure (P1).
METRICS = (
    "test_accuracy",
    "test_soft_accuracy",
    "validation_accuracy",
    "memorisation_accuracy",
    "memorisation_soft_accuracy",
    "memorisation_epoch",
    "best_epoch",
    "training_seconds",
    "inference_microseconds_per_sample",
)
FACTS = (
    "training_width",
    "inference_width",
    "training_multiply_adds",
    "inference_multiply_adds",
    "parameters",
)


def summarise(comparison: Comparison, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows of a comparison from the results so far, for comparison.json and the report.

    Args:
        comparison: what is compared.
        results: by run key, the content of result.json.

    Returns:
        A dictionary for JSON: name, description, base, seeds, runs (done, all), versions, samples, rows. A row has
        label, layer, published, facts (widths, multiply-adds, parameters), the chosen trial's settings and its metrics
        as {"mean", "error", "values"} (error: standard error of the mean, None for one seed), leaf use, key and curves
        over epochs of its first seed's run, and all trials with their validation and test accuracies.
    """
    runs = runs_of(comparison)
    by_candidate: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for run in runs:
        if run.key in results:
            result = {**results[run.key], "run": run.key}
            by_candidate.setdefault(run.label, {}).setdefault(run.trial, []).append(result)
    rows = [_row(c, by_candidate[c.label]) for c in comparison.candidates if c.label in by_candidate]
    first = next(iter(results.values()), {})
    return {
        "name": comparison.name,
        "description": comparison.description,
        "base": comparison.base,
        "seeds": comparison.seeds,
        "runs": {"done": sum(run.key in results for run in runs), "all": len(runs)},
        "versions": first.get("versions", {}),
        "samples": first.get("samples", {}),
        "rows": rows,
    }


def _row(candidate: Candidate, trials: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    scores = {t: mean_and_error([r["validation_accuracy"] for r in results]) for t, results in trials.items()}
    chosen = max(scores, key=lambda t: scores[t]["mean"])
    results = trials[chosen]
    layers = [use for result in results for use in result["layers"].values()]
    row: dict[str, Any] = {
        "label": candidate.label,
        "layer": candidate.layer,
        "published": candidate.published,
        "facts": {name: results[0][name] for name in FACTS},
        "settings": candidate.trials[chosen],
        "seeds_done": len(results),
        "first_run": results[0]["run"],
        "metrics": {m: mean_and_error([r[m] for r in results]) for m in METRICS if m in results[0]},
        "leaves": layers[0]["leaves"] if layers else None,
        "curves": _curves(results[0]["history"]),
        "trials": [
            {
                "settings": candidate.trials[t],
                "validation_accuracy": scores[t],
                "test_accuracy": mean_and_error([r["test_accuracy"] for r in trials[t]]),
            }
            for t in sorted(trials)
        ],
    }
    if layers:
        row["metrics"] |= {
            name: mean_and_error([use[name] for use in layers])
            for name in ("effective_leaves", "used_leaves", "mean_entropy")
        }
        row["leaf_counts"] = next(iter(results[0]["layers"].values()))["leaf_counts"]
    return row


def _curves(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Of one run: accuracy, loss and effective leaves at each epoch, and the first routed layer's node entropies."""
    curves: dict[str, list[Any]] = {
        name: [round(row[name], 4) for row in history]
        for name in ("loss", "train_accuracy", "validation_accuracy", "validation_soft_accuracy")
        if name in history[0]
    }
    if history[0]["layers"]:
        name = next(iter(history[0]["layers"]))
        uses = [row["layers"][name] for row in history]
        curves["effective_leaves"] = [round(use["effective_leaves"], 3) for use in uses]
        curves["mean_entropy"] = [round(use["mean_entropy"], 4) for use in uses]
        nodes = len(uses[-1]["node_entropy"][0])
        if 0 < nodes <= 127:
            entropies = [[None if v is None else round(v, 3) for v in use["node_entropy"][0]] for use in uses]
            curves["node_entropy"] = [row + [None] * (nodes - len(row)) for row in entropies]  # a tree may have grown
    return curves
