"""What a run tells while it trains: a live table, TensorBoard events, a JSONL file, and one warning of collapse."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fastff.runs.files import write_atomically

_COLUMNS = ("epoch", "loss", "train %", "validation %", "soft %", "entropy", "leaves used", "s/epoch")


class RunLog:
    """Follows one run in `folder`: `metrics.jsonl`, TensorBoard events, and a table on the console unless quiet.

    Args:
        folder: of the run; must exist.
        history: the epochs that a resumed run already has; whatever else the files say is overwritten.
        title: above the table.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, history: list[dict[str, Any]], title: str, quiet: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._jsonl = folder / "metrics.jsonl"
        lines = "".join(json.dumps(row) + "\n" for row in history)
        write_atomically(self._jsonl, lambda p: p.write_text(lines))
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1)  # epochs count from 1
        self._console = Console(quiet=quiet)
        self._title, self._rows = title, [_cells(row) for row in history]
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        if self._live:
            self._live.start()
            self._live.update(self._table(), refresh=True)
        else:
            self._console.print(title)

    def epoch(self, row: dict[str, Any], warning: str | None = None) -> None:
        """Record one epoch, and print a warning."""
        with self._jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch":
                self._events.add_scalar(key, value, row["epoch"])
        for name, use in row["layers"].items():
            for key in ("effective_leaves", "used_leaves", "mean_entropy"):
                self._events.add_scalar(f"{name}/{key}", use[key], row["epoch"])
        self._events.flush()
        self._rows.append(_cells(row))
        if self._live:
            self._live.update(self._table(), refresh=True)
        else:
            self._console.print("  ".join(f"{c} {v}" for c, v in zip(_COLUMNS, self._rows[-1], strict=True) if v))
        if warning:
            self._console.print(warning, style="bold yellow")

    def _table(self) -> Table:
        """The newest epochs, as many as the console is high."""
        table = Table(*_COLUMNS, title=self._title)
        for cells in self._rows[-max(5, self._console.height - 8) :]:
            table.add_row(*cells)
        return table

    def close(self) -> None:
        if self._live:
            self._live.stop()
        self._events.close()


def _cells(row: dict[str, Any]) -> list[str]:
    uses = row["layers"].values()
    soft = row.get("validation_soft_accuracy")
    return [
        str(row["epoch"]),
        "no number" if row["loss"] is None else f"{row['loss']:.4f}",
        f"{row['train_accuracy']:.2f}",
        f"{row['validation_accuracy']:.2f}",
        "" if soft is None else f"{soft:.2f}",
        "" if not uses else f"{sum(u['mean_entropy'] for u in uses) / len(uses):.3f}",
        " ".join(f"{u['effective_leaves']:.1f}/{u['leaves']}" for u in uses),
        f"{row['seconds']:.1f}",
    ]
