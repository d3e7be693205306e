"""Running suites: what comes out, and what does not: wrong outputs, slow or large candidates, interrupts."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from fastff.bench import SUITES, Settings, check, run
from fastff.bench.duration import duration
from fastff.bench.plots import plot
from fastff.bench.suites import step
from fastff.bench.table import left_out, table
from fastff.nn import MoE, UltraFFF
from fastff.ops import backend

TINY = Settings(
    in_features=16, out_features=12, depth=3, tokens=(1, 40), rounds=3, budget=5.0, max_width=128, max_blocks=8
)
FIELDS = {
    *("suite", "pass", "candidate", "series", "kind", "tokens", "width", "executed", "dtype", "threads", "cache"),
    *("median_s", "low_s", "high_s", "samples", "ratio_to_dense", "time_to_bound"),
}


def in_definition() -> bool:
    return backend._forced == "reference"


def rendered(results) -> str:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(results))
    return capture.get()


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_measures_every_candidate(suite, tmp_path):
    settings = TINY
    if suite in ("models", "generate"):
        pytest.importorskip("transformers")
        settings = replace(TINY, out_features=16, layers=1)
    if suite == "gpu":  # whose grouped products take rows of whole 16 bytes
        settings = replace(TINY, in_features=16, out_features=16)
    if suite == "given":
        settings = replace(TINY, given=("dense:width=12", "tree:depth=2,leaf_width=2", "moe:experts=4,expert_width=3"))
    if suite == "equal-loss":
        runs = [
            {"layer": layer, "grow": 0.4, "validation_loss": loss}
            for layer, loss in (("dense:width=12", 4.0), ("tree:depth=2,leaf_width=2", 3.9))
        ]
        (tmp_path / "losses").write_text(json.dumps({"runs": runs}))
        settings = replace(TINY, losses=str(tmp_path / "losses"))
    (results,) = run([suite], settings, tmp_path)
    assert results.left_out == []
    groups = SUITES[suite].groups(settings)
    assert [(r["tokens"], r["candidate"]) for r in results.rows] == [
        (group.tokens, candidate.label) for group in groups for candidate in group.candidates
    ]
    written = json.loads((tmp_path / f"{suite}.json").read_text())
    assert set(written) == {"versions", "machine", "settings", "rows", "left_out"}
    assert written["rows"] == results.rows
    assert written["settings"]["depth"] == 3
    for row in written["rows"]:
        assert set(row) == FIELDS
        assert 0 < row["low_s"] <= row["median_s"] <= row["high_s"]
        assert row["samples"] == 3
        assert suite == "equal-loss" or row["ratio_to_dense"] > 0
        assert row["cache"] == "warm"
    text = rendered(results)
    assert all(row["candidate"] in text for row in written["rows"])
    if suite != "equal-loss":
        assert ("times the first" in text) == (suite == "given") != ("times dense" in text)
    assert plot(results).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("depth", [0, 1])
def test_the_smallest_trees(depth, tmp_path):
    settings = replace(TINY, depth=depth, tokens=(3,))
    for results in run(["quick", "inference", "training"], settings, tmp_path):
        assert results.rows
        assert results.left_out == []


def test_the_base_is_the_dense_layer_of_the_training_width(tmp_path):
    (results,) = run(["inference"], TINY, tmp_path)
    base = [row for row in results.rows if row["candidate"] == "dense 15"]
    assert [row["ratio_to_dense"] for row in base] == [1.0, 1.0]
    by_name = {row["candidate"]: row for row in results.rows}
    assert (by_name["UltraFFF 1x3"]["width"], by_name["UltraFFF 1x3"]["executed"]) == (15, 4)
    assert by_name["UltraFFF 1x3 bf16"]["dtype"] == "bfloat16"
    assert by_name["dense 15 int8"]["dtype"] == "int8"
    assert by_name["dense 4 (bound)"]["executed"] == 4
    assert {row["executed"] for row in results.rows if row["kind"] == "tree"} == {4}


def test_no_speed_of_a_wrong_output(tmp_path, monkeypatch):
    right = UltraFFF.forward_tokens

    def wrong(self, x, **parameters):
        y = right(self, x, **parameters)
        if not in_definition():
            y[len(y) // 2, 0] += 0.1
        return y

    monkeypatch.setattr(UltraFFF, "forward_tokens", wrong)
    with pytest.raises(check.DisagreementError, match="UltraFFF 1x3"):
        run(["quick"], TINY, tmp_path)
    written = json.loads((tmp_path / "quick.json").read_text())
    assert any(row["candidate"] == "Tree d3 l1" for row in written["rows"])
    assert not [row for row in written["rows"] if row["candidate"] == "UltraFFF 1x3"]
    assert any(row["candidate"] == "UltraFFF 1x3" and "differs" in row["reason"] for row in written["left_out"])


@pytest.mark.parametrize("parameter", ["x", "w_in", "w_out"])
def test_no_speed_of_a_wrong_gradient(tmp_path, monkeypatch, parameter):
    right = check._gradients

    def wrong(module, x, gradient):
        found = right(module, x, gradient)
        if isinstance(module, UltraFFF) and not in_definition():
            found[parameter][0] *= 1.1
        return found

    monkeypatch.setattr(check, "_gradients", wrong)
    with pytest.raises(check.DisagreementError, match=f"gradient of {parameter}"):
        run(["training"], replace(TINY, tokens=(20,)), tmp_path)


def test_no_speed_of_an_optimiser_that_goes_astray(tmp_path, monkeypatch):
    class Astray(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["params"][0].data.mul_(1.1)

    monkeypatch.setattr(step, "adamw", lambda module: Astray(module.parameters(), lr=1e-6))
    with pytest.raises(check.DisagreementError, match=r"moves otherwise than by AdamW.* \(and \d more\)"):
        run(["step"], replace(TINY, tokens=(20,)), tmp_path)
    written = json.loads((tmp_path / "step.json").read_text())
    assert all(row["candidate"].endswith("sparse") for row in written["rows"])


def test_what_is_too_slow_is_left_out(tmp_path):
    (results,) = run(["quick"], replace(TINY, budget=1e-7), tmp_path)
    assert results.rows == []
    assert all("budget" in row["reason"] for row in results.left_out)
    assert "budget" in left_out(results)[0]
    assert plot(results) is None


def test_what_is_too_large_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("fastff.bench.runner.free_memory", lambda: 4_000)
    (results,) = run(["quick"], TINY, tmp_path)
    assert results.rows
    assert "MoE 2 x 8, top 2" in {row["candidate"] for row in results.left_out}
    assert all("are free" in row["reason"] for row in results.left_out)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")]
)
def test_want_of_memory_stops_one_candidate_only(tmp_path, monkeypatch, error):
    monkeypatch.setattr(MoE, "forward_tokens", Mock(side_effect=error))
    (results,) = run(["quick"], TINY, tmp_path)
    assert {row["reason"] for row in results.left_out} == {"out of memory"}
    assert {row["kind"] for row in results.rows} == {"dense", "bound", "ultra", "tree"}


def test_another_failure_is_raised_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(MoE, "forward_tokens", Mock(side_effect=TypeError("something else")))
    with pytest.raises(RuntimeError, match=r"MoE .* failed: TypeError: something else \(and 2 more\)"):
        run(["quick"], TINY, tmp_path)
    written = json.loads((tmp_path / "quick.json").read_text())
    assert {row["kind"] for row in written["rows"]} == {"dense", "bound", "ultra", "tree"}


def test_a_candidate_that_fails_in_the_rounds_is_left_out(tmp_path, monkeypatch):
    def fail_later(text, *_):
        if "in turn" in text:
            monkeypatch.setattr(MoE, "forward_tokens", Mock(side_effect=MemoryError))

    (results,) = run(["blocks"], replace(TINY, tokens=(1,), max_blocks=2), tmp_path, fail_later)
    assert [row["reason"] for row in results.left_out] == ["out of memory"]
    assert [row["kind"] for row in results.rows] == ["dense", "fff"]


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    seen = []

    def interrupt(text, done, all_steps):
        assert 0 <= done <= all_steps
        if "40 tokens, forward, warm" in text:
            seen.append(text)
            if len(seen) > 30:  # after every candidate's third sample
                raise KeyboardInterrupt

    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(["quick", "inference"], replace(TINY, rounds=20), tmp_path, interrupt, kept.append)
    written = json.loads((tmp_path / "quick.json").read_text())
    assert [r.suite for r in kept] == ["quick"]
    assert kept[0].rows == written["rows"]
    assert {row["tokens"] for row in written["rows"]} == {1, 40}
    assert {row["samples"] for row in written["rows"] if row["tokens"] == 40} <= set(range(3, 8))
    assert not (tmp_path / "inference.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_threads_are_set_and_restored(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    seen = set()

    def note(*_):
        seen.add(torch.get_num_threads())

    (results,) = run(["blocks"], replace(TINY, threads=before + 1, max_blocks=2), tmp_path, note)
    assert seen == {before + 1}
    assert torch.get_num_threads() == before
    assert {row["threads"] for row in results.rows} == {before + 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"in_features": 0}, "in_features must be at least 1"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"rounds": 2}, "rounds must be at least 3"),
        ({"budget": 0.0}, "budget must be above 0"),
        ({"budget": float("nan")}, "budget must be above 0"),
        ({"tokens": ()}, "tokens must name"),
        ({"tokens": (1, 0)}, "tokens must be at least 1"),
        ({"max_blocks": 1}, "max_blocks must be at least 2"),
    ],
)
def test_bad_settings(change, said):
    with pytest.raises(ValueError, match=said):
        replace(TINY, **change)


def test_an_unknown_suite(tmp_path):
    with pytest.raises(ValueError, match="suite must be one of quick, .* got 'quikc'"):
        run(["quikc"], TINY, tmp_path)


def test_durations():
    assert [duration(s) for s in (8.214e-6, 82.14e-6, 1.2e-3, 0.351, 2.5, 12.0, 5e-8)] == [
        *("8.21 µs", "82.1 µs", "1.20 ms", "351 ms", "2.50 s", "12.0 s", "0.05 µs"),
    ]
