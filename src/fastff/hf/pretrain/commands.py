"""The command `fastff pretrain`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastff.hf.pretrain.config import PretrainConfig
from fastff.hf.pretrain.run import pretrain
from fastff.runs.options import with_settings


@with_settings(PretrainConfig)
def pretrain_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/pretrain"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    **settings: Any,
) -> None:
    """Train a masked or causal language model with fast feedforward layers."""
    result = pretrain(PretrainConfig(**settings), out, resume=resume, quiet=quiet)
    Console().print(
        f"validation loss {result['validation_loss']:.4f} after {result['tokens']:,} tokens in "
        f"{result['seconds']:.0f} s; {result['inference_width']:,} of {result['training_width']:,} neurons run for a "
        f"token; saved in {out / 'model'}",
        soft_wrap=True,
    )
