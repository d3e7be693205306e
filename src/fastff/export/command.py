"""The command `fastff export`."""

from pathlib import Path
from typing import Annotated

import typer

from fastff.export import FORMATS, export, load_subject


def export_command(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run of train or pretrain, a model's folder, or a hub id.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="File to write.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}: compiled for C++, or ONNX.")] = "pt2",
    int8: Annotated[bool, typer.Option("--int8", help="Put feedforward layers into int8 first (pt2 alone).")] = False,
) -> None:
    """Write a trained model as a file that runs without Python, and check that it computes the same."""
    import fastff

    subject = load_subject(source)
    if int8:
        fastff.quantize(subject.model)
    difference = export(subject, out, format)
    shapes = ", ".join(f"{name} {tuple(t.shape)[1:]}" for name, t in subject.inputs.items())
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, agrees with the model to {difference:.1e}; a sample is {shapes}")
