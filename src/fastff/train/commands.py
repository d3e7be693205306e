"""The commands `fastff train`, `compare`, `report` and `evaluate`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastff.runs.options import with_settings
from fastff.train.compare import PRESETS, preset, runs_of
from fastff.train.compare import compare as run_comparison
from fastff.train.config import TrainConfig
from fastff.train.evaluation import can_soften, evaluate
from fastff.train.loop import load_config_data, train
from fastff.train.saved import load_model

console = Console()
if not console.is_terminal:
    console.width = 110  # a log has no edge that a table must fit


@with_settings(TrainConfig)
def train_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    **settings: Any,
) -> None:
    """Train one layer on classification data, watching its routing."""
    result = train(TrainConfig(**settings), out, resume=resume, quiet=quiet)
    soft = f" (soft {result['test_soft_accuracy']:.2f} %)" if "test_soft_accuracy" in result else ""
    console.print(
        f"test accuracy {result['test_accuracy']:.2f} %{soft} with the weights of epoch {result['best_epoch']}, "
        f"the best on validation ({result['validation_accuracy']:.2f} %); "
        f"{result['inference_width']} of {result['training_width']} neurons run for a sample; saved in {out}"
    )


def compare_command(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PRESETS)}.")] = "quick",
    *,
    data: Annotated[str | None, typer.Option(help="A hub id, folder or file in place of the preset's data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; by default runs/NAME.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of every setting.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="In place of the preset's.", min=1)] = None,
    limit: Annotated[int | None, typer.Option(help="Training samples at most.", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="Only candidates whose label contains this text.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.", min=1)] = 1,
) -> None:
    """Train dense, MoE and tree layers over several seeds and report them side by side.

    Interrupted, the same command goes on where it stopped; finished runs are not repeated.
    """
    from fastff.train.report import accuracy_table, in_words, write_report  # imports matplotlib

    changes = {k: v for k, v in (("epochs", epochs), ("limit", limit)) if v is not None}
    comparison = preset(name, data=data, seeds=seeds, only=only, **changes)
    folder = out or Path("runs") / name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("the first runs", total=len(runs_of(comparison)))

        def show(run: Any, result: dict[str, Any], done: int, all_runs: int) -> None:
            text = f"{run.label}, seed {run.config.seed}: {result['test_accuracy']:.2f} %"
            progress.update(task, description=text, completed=done, total=all_runs)
            if not console.is_terminal:
                console.print(f"{done}/{all_runs} {text}")

        summary = run_comparison(comparison, folder, jobs=jobs, on_result=show)
    console.print(accuracy_table(summary))
    words = in_words(summary)
    if words.tally:
        console.print(words.tally)
    if words.collapsed:
        console.print(f"Collapsed onto a few leaves: {', '.join(words.collapsed)}.", style="yellow")
    console.print(f"report: {write_report(folder)}")


def report_command(folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")]) -> None:
    """Write report.html of a comparison anew, finished or not."""
    from fastff.train.report import write_report

    console.print(f"report: {write_report(folder)}")


def evaluate_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run of `fastff train`.")],
    *,
    data: Annotated[str | None, typer.Option(help="Other data than the run was trained on.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
) -> None:
    """Evaluate a saved model, hard and, where it differs, soft."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be one of train, validation, test, got {split!r}")
    config = TrainConfig.read(folder / "config.json")
    loaded = load_config_data(config if data is None else dataclasses.replace(config, data=data, limit=None))
    model, loaded = load_model(folder, loaded)
    table = Table("routing", "accuracy %", "loss", "leaves used", "mean entropy", title=f"{config.layer}, {split}")
    for soft in (False, True) if can_soften(model) else (False,):
        found = evaluate(model, loaded, getattr(loaded, split), soft=soft)
        uses = [use for use in found.layers.values() if use.node_counts.numel()]
        table.add_row(
            "soft" if soft else "hard" if found.layers else "-",
            f"{found.accuracy:.2f}",
            f"{found.loss:.4f}",
            " ".join(f"{u.effective_leaves:.1f}/{u.leaf_counts.shape[1]}" for u in found.layers.values()),
            " ".join(f"{u.mean_entropy:.3f}" for u in uses),
        )
    console.print(table)
