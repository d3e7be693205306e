"""The command `fastff bench`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastff.bench.equal_loss import read_losses, speedups
from fastff.bench.results import Results
from fastff.bench.runner import OnProgress, run
from fastff.bench.settings import Settings
from fastff.bench.suites import SUITES
from fastff.bench.table import equal_loss_table, left_out, table

INTERRUPTED = 130

console = Console()
if not console.is_terminal:
    console.width = 110  # a log has no edge that a table must fit


def bench_command(
    suites: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SUITES)}.", show_default="quick")] = None,
    *,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as tree:depth=4,leaf_width=8, or with a precision, dense:width=256@int8, @bfloat16, @float16; "
            "several are compared with the first (suite given), or stand in the models of generate."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the JSON files and plots.")] = Path("runs/bench"),
    tokens: Annotated[
        str | None,
        typer.Option(help="Such as 1,128; width, blocks take the last; models, generate take multiples of 128, 64."),
    ] = None,
    in_features: Annotated[int, typer.Option(help="Of every layer.")] = 768,
    out_features: Annotated[int | None, typer.Option(help="Of every layer; by default as in_features.")] = None,
    depth: Annotated[int, typer.Option(help="Of UltraFFF; all else is of its training or executed width.")] = 11,
    trees: Annotated[int, typer.Option(help="Of UltraFFF and TreeFeedForward.")] = 1,
    threads: Annotated[int, typer.Option(help="Of PyTorch and of our kernels.")] = 1,
    cold: Annotated[bool, typer.Option("--cold", help="Also with caches flushed before each call.")] = False,
    rounds: Annotated[int, typer.Option(help="Samples of each measurement, if the budget lasts.")] = 20,
    budget: Annotated[float, typer.Option(help="Seconds a measurement; a slower call is left out.")] = 8.0,
    max_width: Annotated[int, typer.Option(help="Of the suite width.")] = 2**16,
    max_blocks: Annotated[int, typer.Option(help="Of the suite blocks; 32768 takes 7 GB at 768 features.")] = 2**12,
    layers: Annotated[int | None, typer.Option(help="Of the models; by default 16, of generate 12.")] = None,
    losses: Annotated[
        str | None, typer.Option(help="Of the suite equal-loss: a file that examples/compare_decoders.py wrote.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of inputs and weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or a GPU, cuda or xpu; the suite gpu is made for one.")] = "cpu",
) -> None:
    """Measure the speed of layers and models against dense layers, mixture of experts and plain PyTorch.

    Every output is checked first: a speed is reported only of what computes the right thing.
    """
    settings = Settings(
        in_features=in_features,
        out_features=in_features if out_features is None else out_features,
        depth=depth,
        trees=trees,
        tokens=None if tokens is None else _numbers(tokens),
        threads=threads,
        cold=cold,
        rounds=rounds,
        budget=budget,
        max_width=max_width,
        max_blocks=max_blocks,
        layers=layers,
        given=tuple(layer or ()),
        losses=losses,
        seed=seed,
        device=device,
    )
    chosen = suites or ["given" if layer else "quick"]
    if layer and not set(chosen) <= {"given", "generate"}:
        chosen = [*chosen, "given"]
    try:
        with _progress() as on_progress:
            run(chosen, settings, out, on_progress, _show)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _show(results: Results) -> None:
    (_show_equal_loss if results.suite == "equal-loss" and results.rows else _show_rows)(results)


def _show_rows(results: Results) -> None:
    from fastff.bench.plots import plot  # imports matplotlib

    if results.rows:
        console.print(table(results))
    for line in left_out(results):
        console.print(f"left out: {line}", style="yellow", markup=False)
    console.print(f"{results.path}, {plot(results) or 'nothing to plot'}", markup=False)


def _show_equal_loss(results: Results) -> None:
    from fastff.bench.equal_loss_plot import plot_equal_loss

    layers = read_losses(results.settings.losses)
    found = speedups(results.rows, layers)
    results.more = {"losses": [asdict(layer) for layer in layers], "equal_loss": found}
    results.write()
    console.print(equal_loss_table(found))
    for line in left_out(results):
        console.print(f"left out: {line}", style="yellow", markup=False)
    picture = plot_equal_loss(results.rows, layers, found, results.path.with_suffix(".png"))
    console.print(f"{results.path}, {picture}", markup=False)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"tokens must be whole numbers with commas between them, got {text!r}") from None


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar; in a log, a line for each thing that is done."""
    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        last = ""

        def show(text: str, done: int, all_steps: int) -> None:
            nonlocal last
            progress.update(task, description=text, completed=done, total=all_steps)
            if text != last and not console.is_terminal:
                console.print(text, markup=False)
            last = text

        yield show
