"""The summary for the console."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

COLUMNS = ("model", "neurons", "parameters", "pre-loss", "accuracy %", "kept", "train s")
CAPTION = (
    "neurons: run for a token, of all; pre-loss: of pretraining; kept: of the first model's accuracy; "
    "at N: seconds of inference per 1,000 samples at batch size N"
)


def summary_table(summary: dict[str, Any]) -> Table:
    """One line a model, to fit 80 characters."""
    sizes = summary["models"][0]["inference_seconds"]
    table = Table(title=Text(_title(summary)), caption=CAPTION, box=box.SIMPLE, padding=0)
    for column in (*COLUMNS, *(f"at {size}" for size in sizes)):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in summary["models"]:
        table.add_row(
            Text(row["label"]),  # brackets in it are no markup
            "/".join(_neurons(row)) or "–",
            f"{row['parameters']:,}",
            "–" if row["pretraining_loss"] is None else f"{row['pretraining_loss']:.4f}",
            _accuracy(row),
            _kept(row),
            f"{row['training_seconds']['mean']:,.0f}",
            *(f"{seconds:.3g}" for seconds in row["inference_seconds"].values()),
        )
    return table


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The same as plain lines, for a file."""
    lines = [_title(summary)]
    for row in summary["models"]:
        parts = [f"accuracy {_accuracy(row)} %", f"{_kept(row)} of the first", f"{row['parameters']:,} parameters"]
        if row["feedforward"]:
            parts.append(f"{' of '.join(_neurons(row))} neurons run")
        if row["pretraining_loss"] is not None:
            parts.append(f"pretraining loss {row['pretraining_loss']:.4f}")
        parts.append(f"training {row['training_seconds']['mean']:,.0f} s")
        parts += [
            f"inference {seconds:.3g} s per 1,000 at batch {size}" for size, seconds in row["inference_seconds"].items()
        ]
        lines.append(f"{row['label']}: {', '.join(parts)}")
    return lines


def _title(summary: dict[str, Any]) -> str:
    settings, samples = summary["settings"], summary["samples"]
    runs = "one run" if settings["seeds"] == 1 else f"{settings['seeds']} runs"
    return f"{settings['data']}: {samples['validation']:,} validation samples, {runs} of each model"


def _neurons(row: dict[str, Any]) -> list[str]:
    """Run for a token, and all, of the layers of fastff together; empty where there are none."""
    layers = row["feedforward"]
    return [f"{sum(layer[f'{kind}_width'] for layer in layers):,}" for kind in ("inference", "training") if layers]


def _accuracy(row: dict[str, Any]) -> str:
    error = row["accuracy"]["error"]
    return f"{row['accuracy']['mean']:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _kept(row: dict[str, Any]) -> str:
    return "–" if row["accuracy_kept"] is None else f"{100 * row['accuracy_kept']:.1f} %"
