"""Export to a file: compiled by AOTInductor, or ONNX."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastff.export.check import largest_difference
from fastff.export.gathered import DECOMPOSITIONS
from fastff.export.subject import Subject

FORMATS = ("pt2", "onnx")


def export(subject: Subject, path: str | Path, format: str = "pt2") -> float:
    """Write a trained model as a file that runs without its Python code, and compare it with the model.

    Args:
        subject: the model and an example of its inputs (`load_subject` makes it of what is on disk).
        path: of the file, which takes the place of one that is there once all has succeeded.
        format: "pt2", a package that AOTInductor compiled for this kind of processor, run by
            `torch._inductor.aoti_load_package` or from C++ (examples/aoti); "onnx", standard ONNX operators that
            any runtime knows, with trees by gathered rows, which is slower than the kernels.

    Returns:
        The largest difference to the model, by the largest output.

    Raises:
        ValueError: another format, or layers in int8 in ONNX.
        MismatchError: the exported model computes something else.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        example = tuple(subject.inputs.values())
        program = torch.export.export(subject.model, example, dynamic_shapes=subject.dynamic_shapes, strict=False)
    write, load = (_write_package, _load_package) if format == "pt2" else (_write_onnx, _load_onnx)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / f"model.{format}"
        write(program, subject, made)
        difference = largest_difference(load(made), subject)
        made.replace(path)
    return difference


def _write_package(program: Any, subject: Subject, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_package(path: Path) -> Any:
    package = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: package(*inputs)


def _write_onnx(program: Any, subject: Subject, path: Path) -> None:
    if any(node.target is torch.ops.fastff.tree_int8.default for node in program.graph.nodes):
        raise ValueError("format 'onnx' has no layers in int8: export the model as it is before `fastff.quantize`")
    plain = program.run_decompositions({**torch.export.default_decompositions(), **DECOMPOSITIONS})
    made = torch.onnx.export(
        plain, dynamo=True, verbose=False, input_names=list(subject.inputs), output_names=["output"]
    )
    assert made is not None
    made.save(str(path))


def _load_onnx(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        fed = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run
