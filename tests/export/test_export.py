"""`fastff.export` and its command: what is written computes what the model computes, or nothing is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastff
from conftest import IN, OUT, Variant
from fastff import cli
from fastff.export import MismatchError, Subject, export, files, load_subject
from fastff.ops import backend
from fastff.train import TrainConfig, train

EXAMPLE = Path(__file__).parents[2] / "examples" / "aoti" / "run.cpp"


def subject(model: nn.Module) -> Subject:
    return Subject(model.eval().requires_grad_(False), {"x": torch.randn(3, IN)})


def family() -> nn.Module:
    """Layers of every kind one after the other, no parameter at 0."""
    model = nn.Sequential(
        fastff.TreeFeedForward(IN, 9, depth=3, leaf_width=2, trees=2),
        fastff.TreeFeedForward(
            9, 8, depth=2, leaf_width=1, rank=4, contributing=False, leaf_bias=False, master_width=3
        ),
        fastff.UltraFFF(8, 7, depth=3),
        fastff.FFF(7, 6, depth=2, leaf_width=2, master_width=2),
        fastff.MoE(6, 5, experts=4, expert_width=3),
        fastff.FeedForward(5, OUT, width=3),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainConfig(layer="tree:depth=2,leaf_width=2", epochs=1, limit=300), folder, quiet=True)
    return folder


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fastff", "export", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return (exit_.value.code or 0, *capsys.readouterr())


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_every_layer_at_once(tmp_path):
    pytest.importorskip("onnxruntime")
    assert export(subject(family()), tmp_path / "sub" / "m.onnx", "onnx") < 1e-5
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["m.onnx"]
    import onnx

    assert {node.domain for node in onnx.load(tmp_path / "sub" / "m.onnx").graph.node} == {""}  # standard ones alone


@pytest.mark.filterwarnings("ignore")
def test_the_command_on_a_run(monkeypatch, capsys, tmp_path, run):
    ort = pytest.importorskip("onnxruntime")
    out = tmp_path / "digits.onnx"
    code, printed, _ = command(monkeypatch, capsys, str(run), "--out", str(out), "--format", "onnx")
    assert code == 0
    assert "agrees with the model" in printed
    assert "inputs (1, 8, 8)" in printed
    loaded = load_subject(str(run))
    images = torch.randint(17, (11, 1, 8, 8), dtype=torch.uint8)  # as the data have them
    found = ort.InferenceSession(str(out)).run(None, {"inputs": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), loaded.model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none-such", "--format", "onnx"), "or a hub id, got 'none-such'"),
        ((".", "--format", "onnx"), "config.json cannot be read"),
        (("RUN", "--format", "tflite"), "format must be one of pt2, onnx, got 'tflite'"),
    ],
)
def test_refused(monkeypatch, capsys, tmp_path, run, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(run) if a == "RUN" else a for a in arguments]
    code, _, error = command(monkeypatch, capsys, *arguments, "--out", "file")
    assert code == 2
    assert message in error
    assert not (tmp_path / "file").exists()


def test_what_computes_something_else_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_write_onnx", lambda program, subject, path: path.write_text("x"))
    monkeypatch.setattr(files, "_load_onnx", lambda path: lambda inputs: inputs[0][:, :OUT] * 0)
    (tmp_path / "m").write_text("old")
    with pytest.raises(MismatchError, match="must agree to 0.001 with a batch of 3"):
        export(subject(family()), tmp_path / "m", "onnx")
    monkeypatch.setattr(files, "_load_onnx", lambda path: lambda inputs: inputs[0])
    with pytest.raises(MismatchError, match=r"gives \(3, 6\), not \(3, 5\)"):
        export(subject(family()), tmp_path / "m", "onnx")
    assert (tmp_path / "m").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_int8_has_no_onnx(tmp_path):
    model = fastff.quantize(fastff.TreeFeedForward(IN, depth=2, leaf_width=1).eval())
    with pytest.raises(ValueError, match="'onnx' has no layers in int8"):
        export(subject(model), tmp_path / "m", "onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_each_layer(tmp_path, calm_variant: Variant):
    pytest.importorskip("onnxruntime")
    assert export(subject(calm_variant()), tmp_path / "m.onnx", "onnx") < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "bert", "vit"])
def test_onnx_of_models_of_transformers(tmp_path, kind):
    pytest.importorskip("onnxruntime")
    transformers = pytest.importorskip("transformers")
    from fastff import hf

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=99, **small))
    elif kind == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=4, **small))
    else:
        small["feedforward"] = "ultra:depth=3"
        model = hf.UltraFastBertForMaskedLM(hf.UltraFastBertConfig(vocab_size=99, **small))
    if kind != "bert":
        hf.replace_feedforward(model, "tree:depth=3,leaf_width=1,trees=2")
    model.save_pretrained(tmp_path / "model")
    assert export(load_subject(str(tmp_path / "model")), tmp_path / "m.onnx", "onnx") < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_a_compiled_package_gives_the_same_bits_in_cpp(tmp_path, int8):
    if backend.extension is None or shutil.which("g++") is None:
        pytest.skip("there are no compiled operators, or no compiler")
    model = family()
    if int8:
        fastff.quantize(model.eval())
    assert export(subject(model), tmp_path / "m.pt2") < 1e-5
    root, program = Path(torch.__file__).parent, tmp_path / "run"
    include = [f"-I{root / 'include'}", f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    libraries = [
        f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    subprocess.run(["g++", "-std=c++20", EXAMPLE, *include, *libraries, "-o", program], check=True)
    x = torch.randn(7, IN)
    (tmp_path / "x").write_bytes(x.numpy().tobytes())
    arguments = [tmp_path / "m.pt2", backend.extension.__file__, tmp_path / "x", tmp_path / "y", str(IN)]
    done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout == f"7 samples, {OUT} numbers each\n"
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "m.pt2"))
    assert (tmp_path / "y").read_bytes() == loaded(x).numpy().tobytes()
    missing = subprocess.run(
        [program, *arguments[:2], tmp_path / "none", *arguments[3:]], capture_output=True, text=True
    )
    assert missing.returncode == 1
    assert "error: cannot read" in missing.stderr


def test_the_example_declares_the_operators_as_they_are():
    text = "".join(EXAMPLE.read_text().replace('"\n      "', "").split())
    for name in ("tree_infer", "tree_int8", "indexed"):
        schema = str(getattr(torch.ops.fastff, name).default._schema).removeprefix("fastff::")
        assert "".join(schema.split()) in text, schema
