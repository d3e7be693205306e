"""The suites `models` and `generate`, with tiny models: what is shared, timed, checked, refused, shown."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tables  # of results/
import torch

from fastff import cli
from fastff.bench import Settings, check_model, run
from fastff.bench.check import DisagreementError
from fastff.bench.inputs import Sequences
from fastff.bench.suites import generate, models
from fastff.bench.transformer import batch_of
from fastff.nn import FeedForwardLayer, UltraFFF
from fastff.ops import backend

pytest.importorskip("transformers")

VOCABULARY = 200
TINY = Settings(in_features=32, out_features=32, depth=3, layers=2, tokens=(5,), rounds=3)
LABELS = [
    *("no feedforward (bound)", "UltraFFF 1x3", "Tree d3 l1", "dense 4", "dense 128", "dense 15"),
    *("MoE 2 x 8, top 2", "BERT 128, Transformers"),
]
PASSES = ["encoder, float32", "masked LM, float32", "encoder, bfloat16", "masked LM, bfloat16"]


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch):
    for suite in (models, generate):
        monkeypatch.setattr(suite, "VOCABULARY", VOCABULARY)


@pytest.fixture
def broken(monkeypatch):
    """UltraFFF is wrong, for one token, on the backend that is timed."""
    right = UltraFFF.forward_tokens

    def wrong(self, x, **parameters):
        y = right(self, x, **parameters)
        if backend._forced != "reference":
            y[len(y) // 2] *= 1.5
        return y

    monkeypatch.setattr(UltraFFF, "forward_tokens", wrong)


def built(group) -> dict:
    return {c.label: c.build(training=False) for c in group.candidates}


def weights(model) -> dict:
    return {name: p.data_ptr() for name, p in model.named_parameters()}


def test_models_has_every_pass_and_both_ratios(tmp_path):
    (results,) = run(["models"], TINY, tmp_path)
    assert results.left_out == []
    assert [(r["pass"], r["candidate"]) for r in results.rows] == [(p, label) for p in PASSES for label in LABELS]
    rows = {(r["pass"], r["candidate"]): r for r in results.rows}
    for kind in PASSES:
        bound, base = rows[kind, "no feedforward (bound)"], rows[kind, "dense 15"]
        assert (bound["time_to_bound"], base["ratio_to_dense"]) == (1.0, 1.0)
        assert (bound["width"], bound["executed"], base["width"]) == (0, 0, 15)
        ultra = rows[kind, "UltraFFF 1x3"]
        assert ultra["time_to_bound"] == pytest.approx(ultra["median_s"] / bound["median_s"], rel=1e-3)
        assert kind.endswith(ultra["dtype"])
    text = (tmp_path / "models.json").read_text()
    assert "transformers" in json.loads(text)["versions"]
    assert str(Path.home()) not in text
    assert str(Path(__file__).parents[2]) not in text


def test_models_share_all_but_the_feedforward_layers():
    encoder, *_ = models.groups(TINY)
    made = built(encoder)
    shared = weights(made["no feedforward (bound)"])
    assert not any("feedforward" in name for name in shared)
    for label in LABELS[1:-1]:
        model = made[label]
        assert shared.items() <= weights(model).items()
        layers = [m for m in model.modules() if isinstance(m, FeedForwardLayer)]
        assert len(layers) == 2
        pointers = {p.data_ptr() for layer in layers for p in layer.parameters()}
        assert not pointers & set(shared.values())
        assert {layer.activation for layer in layers} == {"gelu"}
    bert = made["BERT 128, Transformers"]
    assert bert.model.get_input_embeddings().weight.data_ptr() in shared.values()
    for label, model in made.items():
        assert not model.model.training
        assert all(p.any() for p in model.parameters()), label


def test_each_dtype_has_weights_of_its_own():
    for group in models.groups(TINY):
        dtype = getattr(torch, group.kind.split(", ")[1])
        assert {c.dtype for c in group.candidates} == {dtype}
        for model in built(group).values():
            assert {p.dtype for p in model.parameters()} == {dtype}


def test_encoder_and_masked_lm_are_the_same_model():
    encoder, masked_lm, *_ = (built(group) for group in models.groups(TINY))
    ids = torch.randint(1, VOCABULARY, (2, 7))
    for label in LABELS:
        with torch.inference_mode():
            hidden, logits = encoder[label](ids), masked_lm[label](ids)
        assert (hidden.shape, logits.shape) == ((2, 7, 32), (2, 7, VOCABULARY))
        assert set(weights(encoder[label].model).values()) <= set(weights(masked_lm[label].model).values())


def test_generation_is_greedy_and_of_the_length_asked_for():
    group, in_int8 = generate.groups(replace(TINY, tokens=(128,)))
    assert [group.kind, in_int8.kind] == ["generation, float32", "generation, int8"]
    assert [c.label for c in group.candidates] == [
        *("no feedforward (bound)", "dense 128, gated", "UltraFFF 1x3", "Tree d3 l1", "Tree 8x d1 l1"),
    ]
    made = built(group)
    prompt = group.rotation(TINY, torch.float32).batches[0][0]
    assert prompt.shape == (2, generate.PROMPT)
    with torch.inference_mode():
        for label, module in made.items():
            ids = module(prompt)
            assert ids.shape == (2, generate.PROMPT + generate.NEW)
            logits = module.model(ids)[0]
            best = logits[:, generate.PROMPT - 1 : -1].topk(2)
            clear = best.values.diff(dim=-1).squeeze(-1).abs() > 1e-4
            chosen = ids[:, generate.PROMPT :]
            assert torch.equal(chosen[clear], best.indices[..., 0][clear]), label
        with_zeros = made["no feedforward (bound)"].model.model.layers[0].mlp
        assert not with_zeros(torch.randn(1, 2, 32)).any()
    assert [type(m.model.model.layers[0].mlp).__name__ for m in made.values()] == [
        *("Zeros", "LlamaMLP", "UltraFFF", "TreeFeedForward", "TreeFeedForward"),
    ]
    for label, module in built(in_int8).items():
        assert module(prompt).shape == (2, generate.PROMPT + generate.NEW), label
        assert not any(isinstance(part, torch.nn.Linear) for part in module.modules())
        assert all(layer.int8 for layer in module.modules() if isinstance(layer, FeedForwardLayer))


def test_generation_with_layers_of_ones_own():
    group, in_int8 = generate.groups(replace(TINY, given=("dense:width=8", "tree:depth=2,leaf_width=1")))
    for candidates in (group.candidates, in_int8.candidates):
        assert [(c.label, c.base) for c in candidates] == [
            *(("no feedforward (bound)", False), ("dense:width=8", True), ("tree:depth=2,leaf_width=1", False)),
        ]
        assert candidates[1].width == 8
    made = [module.model.model.layers[0].mlp for module in (*built(group).values(), *built(in_int8).values())]
    assert [type(layer).__name__ for layer in made] == [
        *("Zeros", "FeedForward", "TreeFeedForward"),
        *("Zeros", "Int8", "TreeFeedForward"),
    ]
    with pytest.raises(ValueError, match="layer must have no precision in generate.*'dense:width=8@int8'"):
        generate.groups(replace(TINY, given=("dense:width=8@int8",)))


@pytest.mark.parametrize("suite", ["models", "generate"])
def test_no_speed_of_a_wrong_layer(suite, broken, tmp_path):
    with pytest.raises(DisagreementError, match="UltraFFF 1x3: output differs from the definition"):
        run([suite], TINY, tmp_path)
    written = json.loads((tmp_path / f"{suite}.json").read_text())
    passes = {row["pass"] for row in written["rows"] if "int8" not in row["pass"]}  # where no layer was wrong
    assert passes == {row["pass"] for row in written["left_out"]}
    assert {row["candidate"] for row in written["left_out"]} == {"UltraFFF 1x3"}
    assert "UltraFFF 1x3" not in {row["candidate"] for row in written["rows"] if row["pass"] in passes}


def test_the_whole_output_is_compared_too(broken, monkeypatch, tmp_path):
    monkeypatch.setattr(check_model, "check_output", lambda *_: None)
    with pytest.raises(DisagreementError, match=r"UltraFFF 1x3: the model's output differs .*reference"):
        run(["generate"], TINY, tmp_path)


def test_an_output_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(generate.Zeros, "forward", lambda self, x: torch.full_like(x, float("nan")))
    with pytest.raises(DisagreementError, match="no feedforward .*not finite"):
        run(["generate"], TINY, tmp_path)


def test_slow_models_get_fewer_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "BUDGET", 1e-9)
    (results,) = run(["models"], replace(TINY, rounds=6), tmp_path)
    assert {row["samples"] for row in results.rows} == {3}


@pytest.mark.parametrize("suite", ["models", "generate"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out_features": 16}, "out_features = in_features, 32, got 16"),
        ({"in_features": 33, "out_features": 33}, "an even in_features, got 33"),
        ({"tokens": (130,)}, "tokens must be at most .* got 130"),
    ],
)
def test_what_does_not_apply_is_refused_before_anything_is_written(suite, change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run(["quick", suite], replace(TINY, **change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_number_of_layers():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        replace(TINY, layers=0)


@pytest.mark.parametrize("suite", ["models", "generate"])
def test_without_transformers(suite, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("fastff.hf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RuntimeError, match=r"package 'transformers': pip install 'fastff\[hf\]'"):
        run([suite], TINY, tmp_path)


def test_sequences():
    assert [batch_of(n, 128) for n in (1, 100, 128, 1024)] == [(1, 1), (1, 100), (1, 128), (8, 128)]
    rotation = Sequences(2, 5, vocabulary=3, seed=0)
    assert {ids.shape for (ids,) in rotation.batches} == {(2, 5)}
    assert torch.cat([ids for (ids,) in rotation.batches]).unique().tolist() == [1, 2]
    assert len({tuple(ids.flatten().tolist()) for (ids,) in Sequences(1, 8, vocabulary=99, seed=0).batches}) == 32


def test_the_command(monkeypatch, capsys, tmp_path):
    options = ("--in-features", "32", "--depth", "3", "--layers", "1", "--tokens", "3", "--rounds", "3")
    monkeypatch.setattr(sys, "argv", ["fastff", "bench", "generate", *options, "--out", str(tmp_path / "b")])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    assert (exit_.value.code or 0, err) == (0, "")
    assert "of bound" in out
    assert len(json.loads((tmp_path / "b" / "generate.json").read_text())["rows"]) == 10


def test_markdown(tmp_path):
    results = {"versions": {"torch": "2", "transformers": "5"}, "machine": {"cpu": "C", "instruction_set": "avx2"}}
    results["settings"] = {"threads": 1, "in_features": 768}
    fields = ("suite", "pass", "candidate", "tokens", "dtype", "cache", "median_s", "ratio_to_dense", "time_to_bound")
    values = [
        ("models", "encoder, float32", "dense 4095", 128, "float32", "warm", 0.3, 1.0, 3.0),
        ("models", "encoder, float32", "none", 1024, "float32", "warm", 0.1, None, 1.0),
        ("models", "encoder, bfloat16", "none", 1024, "bfloat16", "warm", 0.05, 2.0, 1.0),
    ]
    results["rows"] = [dict(zip(fields, row, strict=True)) for row in values]
    assert tables.model_table(results).splitlines() == [
        "| encoder | batch 1, float32 | batch 8, float32 | batch 8, bfloat16 |",
        "|---|---|---|---|",
        "| dense 4095 | 300 ms, 3.00, 1.0x |  |  |",
        "| none |  | 100 ms, 1.00 | 50.0 ms, 1.00, 2.0x |",
        "",
        "Time of a call, time in that of no feedforward, times faster than dense 4095. 768 features; 1 thread, C, "
        "avx2, torch 2, transformers 5.",
    ]
    row = ("generate", "generation, float32", "dense 3072, gated", 512, "float32", "warm", 2.0, 1.0, 1.5)
    results["rows"] = [dict(zip(fields, row, strict=True))]
    written = tables.model_table(results)
    assert "| dense 3072, gated | 256/s, 1.50, 1.0x |" in written
    assert "New tokens a second" in written
