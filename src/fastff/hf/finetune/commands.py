"""The command `fastff finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.finetune.run import finetune
from fastff.hf.finetune.table import summary_lines, summary_table
from fastff.runs.options import with_settings


@with_settings(FinetuneConfig)
def finetune_command(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Folders, runs of `fastff pretrain`, hub ids; the reference first."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/finetune"),
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the model of each run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    **settings: Any,
) -> None:
    """Fine-tune models as classifiers of texts over several seeds and compare them.

    Interrupted, the same command goes on where it stopped; finished runs are not repeated.
    """
    summary = finetune(models, FinetuneConfig(**settings), out, save_models=save_models, quiet=quiet)
    console = Console()
    if console.is_terminal:
        console.print(summary_table(summary))
    else:
        for line in summary_lines(summary):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"summary: {out / 'summary.json'}", soft_wrap=True)
