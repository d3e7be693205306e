"""What a fine-tuning tells while it runs: a progress bar, or lines where there is no terminal."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 10  # of a run's steps


class FinetuneLog:
    """Follows all runs; a context manager.

    Args:
        runs: how many there are.
        quiet: print nothing.
    """

    def __init__(self, runs: int, quiet: bool) -> None:
        self._console = Console(quiet=quiet)
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            columns = (TextColumn("{task.percentage:3.0f} %"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}", markup=False), console=self._console)
            self._task = self._bar.add_task("", total=runs)
        self._runs_done, self._title = 0, ""

    def __enter__(self) -> "FinetuneLog":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, title: str, runs_done: int) -> None:
        """A run begins, or what comes after all runs."""
        self._title, self._runs_done = title, runs_done
        if self._bar:
            self._bar.update(self._task, description=title, completed=runs_done)
        else:
            self.line(title)

    def step(self, step: int, steps: int, loss: float) -> None:
        """A step is done; `loss`: of the epoch so far."""
        text = f"{self._title}: step {step:,} of {steps:,}, loss {loss:.4f}"
        if self._bar:
            self._bar.update(self._task, description=text, completed=self._runs_done + step / steps)
        elif step * LINES // steps > (step - 1) * LINES // steps:
            self.line(text)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """An epoch is over."""
        self.line(
            f"{self._title}: epoch {epoch}, loss {row['loss']:.4f}, validation loss {row['validation_loss']:.4f}, "
            f"accuracy {row['validation_accuracy']:.2f} %"
        )

    def line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)
