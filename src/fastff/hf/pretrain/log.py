"""What a run tells while it trains: a progress bar or lines, a JSONL file, TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastff.runs.files import write_atomically

EVENTS = ("effective_leaves", "used_leaves", "mean_entropy")  # of each layer


class RunLog:
    """Follows one run in `folder`: `metrics.jsonl`, TensorBoard events, and the console unless quiet.

    Args:
        folder: of the run; must exist.
        step: what a resumed run has behind it; what the files say of later steps is dropped.
        title: above the rest.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, step: int, title: str, quiet: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._jsonl = folder / "metrics.jsonl"
        lines = self._jsonl.read_text().splitlines(keepends=True) if step else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_atomically(self._jsonl, lambda path: path.write_text("".join(kept)))
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._console = Console(quiet=quiet)
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console)
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        self._console.print(title, soft_wrap=True)

    def step(self, row: dict[str, Any], share: float, rate: float) -> None:
        """Record some steps of training.

        Args:
            row: their figures.
            share: of the budget that is used up.
            rate: tokens a second.
        """
        self._record(row)
        left = row["seconds"] * (1 - share) / share
        text = f"{row['tokens']:,} tokens, loss {row['loss']:.4f}, {rate:,.0f} tokens/s, {_duration(left)} left"
        if self._bar:
            self._bar.update(self._task, description=text, completed=share)
        else:
            self._console.print(f"{100 * share:3.0f} %  {text}", soft_wrap=True)

    def evaluation(self, row: dict[str, Any], warning: str | None = None) -> None:
        """Record an evaluation, and print it with a warning."""
        self._record(row)
        uses = row["layers"].values()
        leaves = "  leaves used " + " ".join(f"{u['effective_leaves']:.1f}/{u['leaves']}" for u in uses) if uses else ""
        self._console.print(f"step {row['step']}: validation loss {row['validation_loss']:.4f}{leaves}", soft_wrap=True)
        if warning:
            self._console.print(warning, style="bold yellow", soft_wrap=True)

    def _record(self, row: dict[str, Any]) -> None:
        with self._jsonl.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                self._events.add_scalar(key, value, row["step"])
        for name, use in row.get("layers", {}).items():
            for key in EVENTS:
                self._events.add_scalar(f"{name}/{key}", use[key], row["step"])
        self._events.flush()

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        self._events.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
