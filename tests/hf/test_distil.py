"""Distillation: what layers learn from, where they start, whole runs, and what is refused."""

import json
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
)

from fastff import cli, quantize, start_growth
from fastff.hf import feedforward_modules, replace_feedforward
from fastff.hf.distillation import DistilConfig, Interrupted, distil
from fastff.hf.distillation.distiller import Distiller, captured, divergence, missed, pooled
from fastff.hf.distillation.experts import clusters
from fastff.hf.distillation.fit import Neurons
from fastff.hf.distillation.initial import start_from_neurons
from fastff.hf.distillation.models import recommended
from fastff.hf.pretrain.schedule import Progress
from fastff.hf.text import train_tokenizer
from processes_common import DDP, launch

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": SMALL | {"intermediate_size": 24, "max_position_embeddings": 32},
    "bert": SMALL | {"intermediate_size": 24, "max_position_embeddings": 32, "hidden_act": "relu"},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 32},
    "opt": SMALL | {"ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
}
KINDS = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "embedding": AutoModel}
TREE = "tree:depth=2,leaf_width=1,trees=4"
LEAVES = "tree:depth=2,leaf_width=8,contributing=false,gradient=none"  # that start at neurons of their own


def original(kind: str, auto: Any) -> PreTrainedModel:
    """Random weights large enough that layers do something."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, **SHAPES[kind])).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 1.5 * p.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(60)]
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(800)))
    return path


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory) -> dict[str, str]:
    """An original for each objective, with its tokenizer."""
    made = {}
    for objective, kind, tokens in (
        ("causal", "llama", "bpe"),
        ("masked", "bert", "wordpiece"),
        ("embedding", "bert", "wordpiece"),
    ):
        folder = tmp_path_factory.mktemp(objective)
        original(kind, KINDS[objective]).save_pretrained(folder)
        train_tokenizer(iter([text.read_text()]), 300, tokens).save_pretrained(folder)
        made[objective] = str(folder)
    return made


def config(text: Path, model: str, **settings: Any) -> DistilConfig:
    small = {
        "data": str(text),
        "model": model,
        "feedforward": TREE,
        "length": 16,
        "tokens": 6000,
        "batch_size": 4,
        "start_batch": 4,
        "end_batch": 4,
        "validation": 8,
        "evaluations": 4,
        "checkpoints": 6,
        "logs": 4,
        "lr": 1e-2,
    }
    return DistilConfig(**small | settings)


@pytest.mark.parametrize("objective", KINDS)
def test_a_run_learns_and_writes_a_model(objective, folders, text, tmp_path, capsys):
    c = config(text, folders[objective])
    result = distil(c, tmp_path / "run")
    shown = capsys.readouterr().out
    assert f", {objective}, with tree" in shown
    assert result["missed_mean"] > 0.01
    assert result["missed_mean"] == pytest.approx(sum(result["missed"].values()) / 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    by_layer, _, _, whole = (row["validation_loss"] for row in rows if "validation_loss" in row)
    assert by_layer < 0.9
    assert result["validation_loss"] == whole
    folder = tmp_path / "run" / "model"
    card = (folder / "README.md").read_text()
    assert "variance of the layers' outputs that is missed" in card
    assert Path(folders[objective]).name in card
    model = KINDS[objective].from_pretrained(folder).eval()
    teacher = KINDS[objective].from_pretrained(folders[objective]).eval()
    assert set(result["missed"]) == set(feedforward_modules(teacher))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text.read_text())["input_ids"][5:69]).view(4, 16)
    (before, now), *more = result["kept"].values()
    assert not more
    if objective == "embedding":
        assert (before, now) == (1, pytest.approx(now))
        found, wanted = (pooled(m(ids).last_hidden_state, torch.ones_like(ids)) for m in (model, teacher))
        assert nn.functional.cosine_similarity(found, wanted).min() > 0.5
    else:
        assert before == pytest.approx(now, abs=0.5)
        found, wanted = (m(ids).logits.flatten(0, 1) for m in (model, teacher))
        assert divergence(found, wanted) < divergence(wanted.roll(1, 0), wanted) / 2
    assert distil(c, tmp_path / "run", resume=True) == result
    quantize(model)


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_captured_is_the_function(kind):
    model = original(kind, AutoModel)
    functions = feedforward_modules(model)
    ids = torch.randint(5, 300, (2, 7))
    kept = captured(model, functions, {"input_ids": ids})
    assert kept.keys() == functions.keys()
    for name, (x, y) in kept.items():
        linears = [model.get_submodule(linear) for linear in functions[name].linears]
        assert x.shape == y.shape == ((14, 16) if kind == "opt" else (2, 7, 16))
        if kind == "llama":
            module = model.get_submodule(name)
            assert linears == [module.gate_proj, module.up_proj, module.down_proj]
            expected = module(x)
        elif kind == "gpt2":
            expected = model.get_submodule(name)(x)
        else:
            expected = linears[1](nn.functional.relu(linears[0](x)))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_missed_counts_each_feature_by_its_variance():
    wanted = torch.randn(1000, 3) * torch.tensor([1.0, 100.0, 0.01])
    assert missed(wanted, wanted) == 0
    assert missed(wanted.mean(0).expand_as(wanted), wanted) == pytest.approx(
        1, abs=0.01 + 0.4
    )  # the smallest hardly counts
    found = wanted.clone()
    found[:, 1] = wanted[:, 1].mean()
    assert missed(found, wanted) == pytest.approx(1 / 3, abs=1e-3)


def distiller(kind: str, layer: str, auto: Any = AutoModel) -> Distiller:
    teacher = original(kind, auto)
    student = replace_feedforward(original(kind, auto), layer)
    return Distiller(teacher, student, feedforward_modules(teacher), "embedding")


def test_layers_after_the_last_one_do_not_run():
    model = original("llama", AutoModel)
    first = dict(list(feedforward_modules(model).items())[:1])
    model.layers[1].register_forward_hook(lambda *_: pytest.fail("the second layer ran"))
    assert list(captured(model, first, {"input_ids": torch.randint(5, 300, (2, 7))})) == ["layers.0.mlp"]


class Fused(nn.Module):
    """Both rows of a gated neuron in one layer, as in Phi-3 (what is activated first) or the other way round."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.up, self.act, self.down, self.first = nn.Linear(16, 48), nn.SiLU(), nn.Linear(24, 16), first

    def forward(self, x):
        parts = self.up(x).chunk(2, dim=-1)
        return self.down(self.act(parts[self.first]) * parts[1 - self.first])


@pytest.mark.parametrize("first", [0, 1])
def test_which_row_of_a_gated_neuron_is_activated(first):
    model = nn.ModuleDict({"layers": nn.ModuleList([Fused(first)])})
    ((name, function),) = feedforward_modules(model).items()
    assert function.gated
    neurons = Neurons.of(name, function, model)
    torch.testing.assert_close(neurons.w1[:, 0], model.get_submodule(name).up.weight.unflatten(0, (2, 24))[first])
    model.get_submodule(name).forward = lambda x: x  # something else
    assert Neurons.of(name, function, model) is None


@pytest.mark.parametrize(
    ("layer", "most"),
    [
        ("dense:width=24", 1e-4),  # all neurons there are
        ("dense:width=30", 1e-4),
        ("dense:width=12", 0.5),
        ("tree:depth=5,leaf_width=1,trees=4", 1e-4),  # 24 at first
        ("tree:depth=2,leaf_width=4,trees=2", 0.5),
        ("tree:depth=2,leaf_width=12,contributing=false", 0.4),
        ("tree:depth=2,leaf_width=6,trees=2,contributing=false,two_sided=false", 0.5),
        ("tree:depth=1,leaf_width=30,contributing=false,two_sided=false,leaf_bias=false", 0.1),
        ("tree:depth=2,leaf_width=1,trees=2,rank=4,contributing=false,leaf_bias=false,master_width=12", 0.7),
        ("tree:depth=2,leaf_width=1,contributing=false,master_width=24", 1e-4),  # the dense neurons are all there are
        ("tree:depth=2,leaf_width=6,contributing=false,master_width=12", 0.35),
        ("dense:width=24,gated=true", 1e-4),
        ("dense:width=12,gated=true", 0.6),
        ("tree:depth=2,leaf_width=30,contributing=false,gated=true", 1e-4),
        ("tree:depth=2,leaf_width=12,contributing=false,gated=true", 0.5),
        ("tree:depth=2,leaf_width=6,trees=2,contributing=false,gated=true", 0.5),
        ("peer:experts=25,heads=2,top_k=2,key_features=4,rank=8,master_width=12", 0.5),
        ("moe:experts=3,expert_width=8,top_k=2,noise=false", 0.9),
        ("moe:experts=3,expert_width=8,top_k=2,noise=false,gated=true", 0.8),
    ],
)
def test_layers_start_at_the_neurons_that_matter(layer, most):
    torch.manual_seed(0)
    d = distiller("llama" if "gated" in layer else "bert", layer).eval()
    ids = torch.randint(5, 300, (64, 16))
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        start_growth(d.student)
        before = d.missed_by_layer(inputs, mask.bool())
        start_growth(d.student, 1.0)
        start_from_neurons(d, [inputs])
        start_growth(d.student)
        after = d.missed_by_layer(inputs, mask.bool())
    for name in d.functions:
        assert after[name] < most
        assert after[name] < 0.6 * before[name]


def test_experts_are_neurons_that_are_strong_on_the_same_tokens():
    kind, member = torch.randint(10, (400,)), torch.arange(40) % 10  # tokens and neurons of ten kinds
    groups = clusters((kind[:, None] == member).float() + 0.1 * torch.rand(400, 40), 10, 4)
    assert sorted(member[group].unique().item() for group in groups) == list(range(10))
    assert sorted(torch.cat(groups).tolist()) == list(range(40))


def test_gated_functions_give_their_mean():
    torch.manual_seed(0)
    d = distiller("llama", "tree:depth=2,leaf_width=1,trees=3").eval()
    ids = torch.randint(5, 300, (16, 16))
    kept = captured(d.teacher, d.functions, {"input_ids": ids})
    start_from_neurons(d, [{"input_ids": ids}])
    for name, (_, y) in kept.items():
        bias = d.student.get_submodule(name).base_b2.sum(0)[0]
        torch.testing.assert_close(bias, y.flatten(0, 1).mean(0), rtol=1e-4, atol=1e-5)


def test_leaves_of_gated_functions_give_the_mean_of_their_tokens():
    torch.manual_seed(0)
    d = distiller("llama", LEAVES).eval()
    ids = torch.randint(5, 300, (64, 16))
    kept = captured(d.teacher, d.functions, {"input_ids": ids})
    start_from_neurons(d, [{"input_ids": ids}])
    for name, (x, y) in kept.items():
        layer = d.student.get_submodule(name)
        layer(x)
        leaf, y_TO = layer.routing.leaf[:, 0], y.flatten(0, 1)
        assert layer.routing.effective_leaves > 3.9
        for i in range(4):
            torch.testing.assert_close(layer.leaf_b2[0, i], y_TO[leaf == i].mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "layer"),
    [(6, TREE), (60, TREE), (60, LEAVES)],  # in the first stage, in the second
)
def test_an_interrupted_run_goes_on_to_the_same_bits(step, layer, folders, text, tmp_path, monkeypatch):
    c = config(text, folders["masked"], feedforward=layer)
    distil(c, tmp_path / "whole", quiet=True)
    end = Progress.end_step

    def interrupt(self: Progress, seconds: float) -> None:
        end(self, seconds)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "end_step", interrupt)
        with pytest.raises(Interrupted):
            distil(c, tmp_path / "run", quiet=True)
    distil(c, tmp_path / "run", resume=True, quiet=True)
    found, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_other_weights_stay_or_move_slowly(folders, text, tmp_path):
    start = AutoModel.from_pretrained(folders["embedding"]).state_dict()
    for others, stays in ((0.0, True), (0.1, False)):
        out = tmp_path / str(others)
        distil(config(text, folders["embedding"], others=others, tokens=2000), out, quiet=True)
        end = load_file(out / "model" / "model.safetensors")
        kept = [name for name in end if name in start]
        assert all(torch.equal(end[n], start[n]) for n in kept if "position_ids" not in n) is stays
        assert len(kept) > 10


def test_decisions_from_the_data_stay(folders, text, tmp_path):
    result = distil(config(text, folders["embedding"], feedforward=LEAVES), tmp_path / "run", quiet=True)
    model = AutoModel.from_pretrained(tmp_path / "run" / "model")
    assert result["inference_width"] == 20
    for name, use in result["layers"].items():
        layer = model.get_submodule(name.removeprefix("student."))
        assert not layer.shared_base
        assert use["effective_leaves"] > 2.5  # halves of halves of what they were set from
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len({str(row["layers"]) for row in rows if "layers" in row and row["step"] < 40}) == 1


@pytest.mark.parametrize("name", ["", "tree"])
def test_the_layer_to_take_if_none_is_named(name, folders, text, tmp_path, capsys):
    distil(config(text, folders["masked"], feedforward=name, tokens=500), tmp_path / "run")
    assert "with tree:depth=4,leaf_width=3,contributing=false,gradient=none,activation=relu" in capsys.readouterr().out
    functions = feedforward_modules(original("llama", AutoModel))
    assert recommended(functions) == "tree:depth=4,leaf_width=3,contributing=false,gradient=none,gated=true"


def test_only_some_layers(folders, text, tmp_path):
    c = config(text, folders["causal"], modules="model.layers.1.*", tokens=1000, layerwise=1.0)
    result = distil(c, tmp_path / "run", quiet=True)
    assert list(result["missed"]) == ["model.layers.1.mlp"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "none-such"}, "model 'none-such' is no folder or hub id"),
        ({"feedforward": "tee:depth=2"}, "layer must be one of"),
        ({"feedforward": "tree:depth=2,leaf_width=1,standardise=true"}, "feedforward must not standardise, or neurons"),
        ({"objective": "sorting"}, "objective must be one of"),
        ({"layerwise": 1.5}, r"layerwise must be in \[0, 1\], got 1.5"),
        ({"others": -1.0}, "others must be a finite number of at least 0"),
        ({"mask_share": 2.0}, "mask_share must be at most 1"),
        ({"length": 64}, "max_position_embeddings = 32, got 64"),
        ({"modules": "lm_head"}, r"modules must match feedforward modules"),
        ({"data": "EMPTY"}, "tokens for 0 blocks"),
        ({"tokens": None}, "one of tokens and minutes"),
    ],
)
def test_refused(settings, message, folders, text, tmp_path):
    (tmp_path / "empty.txt").write_text("a")
    settings = {k: str(tmp_path / "empty.txt") if v == "EMPTY" else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=message):
        distil(config(text, **{"model": folders["causal"]} | settings), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.json").exists()


def test_models_that_cannot_be_originals_are_refused(folders, text, tmp_path):
    for name, edit, message in (
        ("ours", lambda m: replace_feedforward(m, TREE), "were replaced"),
        ("int8", lambda m: setattr(m.config, "quantization_config", {"quant_method": "gptq", "bits": 4}), "by 'gptq'"),
    ):
        model = AutoModelForCausalLM.from_pretrained(folders["causal"])
        edit(model)
        model.config.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            distil(config(text, str(tmp_path / name)), tmp_path / "run", quiet=True)
    bloom = AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=300)
    AutoModelForCausalLM.from_config(bloom).save_pretrained(tmp_path / "bloom")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bloom" / name).write_bytes((Path(folders["causal"]) / name).read_bytes())
    with pytest.raises(ValueError, match="must have feedforward modules, found none"):
        distil(config(text, str(tmp_path / "bloom")), tmp_path / "run", quiet=True)


def test_the_command(folders, text, tmp_path, monkeypatch, capsys):
    small = {"tokens": 1000, "length": 16, "batch-size": 4, "start-batch": 4, "end-batch": 4, "validation": 8}
    options = [f"--{name}={value}" for name, value in (small | {"data": text, "feedforward": TREE}).items()]
    out = ["--out", str(tmp_path / "run"), "--quiet"]
    monkeypatch.setattr(sys, "argv", ["fastff", "distil", folders["embedding"], *options, *out])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "the layers miss" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_tied_weights_are_saved_once():
    d = Distiller(original("bert", AutoModelForMaskedLM), original("bert", AutoModelForMaskedLM), {}, "masked")
    names = set(d.state_dict())
    assert not any("teacher" in name for name in names)
    tied = {"student.bert.embeddings.word_embeddings.weight", "student.cls.predictions.decoder.weight"}
    assert len(names & tied) == 1
    assert SimpleNamespace(**d.load_state_dict(d.state_dict(), strict=False)._asdict()).unexpected_keys == []


TWO_PROCESSES = """
import json, sys
from fastff.hf.distillation import DistilConfig, distil
from fastff.hf.distillation.run import DistilRun

finish = DistilRun.finish
def checked(self):
    assert self.trainer.accelerator.num_processes == 2
    return finish(self)
DistilRun.finish = checked
distil(DistilConfig(**json.loads(sys.argv[2])), sys.argv[1], quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal", "embedding"])
def test_two_processes_learn_as_one_does(tmp_path, folders, text, objective):
    rounding = {"epsilon": 1e-3}  # does not decide the direction of a step
    c = config(text, folders[objective], batch_size=2, start_batch=8, end_batch=8, **rounding)
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    done = launch(script, DDP, [str(tmp_path / "two"), json.dumps(c.to_dict())])
    assert not done.returncode, done.stderr[-3000:]
    # One process that takes as much at once sees the same sequences at each step. It divides them otherwise into parts,
    # each of which is measured by its own variance.
    result = distil(c, tmp_path / "one", quiet=True)
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["tokens"] == result["tokens"]
    assert two["missed_mean"] == pytest.approx(result["missed_mean"], abs=0.01)
    assert two["kept"].keys() == result["kept"].keys()
    model, alone = (KINDS[objective].from_pretrained(tmp_path / name / "model") for name in ("two", "one"))
    assert all(a.shape == b.shape for a, b in zip(model.parameters(), alone.parameters(), strict=True))
