"""The command `fastff distil`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fastff.hf.distillation.config import DistilConfig
from fastff.hf.distillation.run import distil
from fastff.runs.options import with_settings


@with_settings(DistilConfig, argument="model")
def distil_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/distil"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    **settings: Any,
) -> None:
    """Replace the feedforward layers of a pretrained model and teach the new ones what the original does."""
    result = distil(DistilConfig(**settings), out, resume=resume, quiet=quiet)
    kept = ", ".join(f"{name} {a:.4f} and now {b:.4f}" for name, (a, b) in result["kept"].items())
    Console().print(
        f"the layers miss {100 * result['missed_mean']:.1f} % of the variance; {kept}; {result['inference_width']:,} "
        f"of {result['training_width']:,} neurons run for a token; saved in {out / 'model'}",
        soft_wrap=True,
    )
