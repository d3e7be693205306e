import json
import re

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from fastff.train.report import accuracy_table, write_report
from fastff.train.report.rows import against_dense, plus_minus


def metric(mean, error):
    return {"mean": mean, "error": error, "values": [mean]}


def row(label, layer, accuracy, *, leaves=None, soft=None, seeds=2, width=7, **changes):
    error = 0.5 if seeds > 1 else None
    figures = {"test_accuracy": accuracy, "validation_accuracy": accuracy + 1, "best_epoch": 2}
    figures |= {"memorisation_accuracy": 99.5, "memorisation_epoch": 3}
    figures |= {"training_seconds": 1.25, "inference_microseconds_per_sample": 4.5}
    curves = {"loss": [1.0, 0.5, 0.4], "train_accuracy": [50.0, 80.0, 90.0], "validation_accuracy": [40.0, 70.0, 80.0]}
    if soft:
        figures["test_soft_accuracy"] = soft
    if leaves:
        figures |= {"effective_leaves": 1.5, "used_leaves": 0.5, "mean_entropy": 0.3}
        curves |= {"effective_leaves": [1.2, 1.4, 1.5], "mean_entropy": [0.6, 0.4, 0.3]}
        changes = {"leaf_counts": [[30, 10, *[0] * (leaves - 2)]], **changes}
        if not layer.startswith("moe"):
            curves["node_entropy"] = [[0.6, 0.5, None] + [0.1] * (leaves - 4)] * 3
    metrics = {name: metric(value, error) for name, value in figures.items()}
    facts = {"inference_width": width, "inference_multiply_adds": 518}
    facts |= {"training_width": 39, "training_multiply_adds": 1628}
    settings = {"lr": 0.002, "optimizer": "adamw"}
    trial = {"settings": settings, "validation_accuracy": metric(90, error), "test_accuracy": metric(accuracy, error)}
    return {
        "label": label, "layer": layer, "published": {}, "facts": facts, "settings": settings, "seeds_done": seeds,
        "first_run": f"run-{leaves}", "metrics": metrics, "leaves": leaves, "curves": curves, "trials": [trial],
        **changes,
    }  # fmt: skip


def summary(seeds=2, done=8, **soft):
    rows = [
        row("tree <b>$8$</b>", "tree:depth=3,leaf_width=4", 95.0, leaves=8, seeds=seeds),
        row("fff", "fff:depth=2,leaf_width=5", 91.5, leaves=4, seeds=seeds, **soft),
        row("moe", "moe:experts=8,expert_width=2", 60.0, leaves=8, seeds=seeds, width=9),
        row("dense 7", "dense:width=7", 91.0, seeds=seeds, published={"test_accuracy": 98.1, "source": "the paper"}),
    ]
    return {
        "name": "small", "description": "A test.", "base": {"data": "digits", "epochs": 3}, "seeds": seeds,
        "runs": {"done": done, "all": 8}, "versions": {"fastff": "0.1.0", "torch": "2"},
        "samples": {"train": 1200, "validation": 240, "test": 357}, "rows": rows,
    }  # fmt: skip


def report(folder, content):
    (folder / "comparison.json").write_text(json.dumps(content))
    return write_report(folder).read_text(encoding="utf-8")


def test_says_what_the_data_say(tmp_path):
    html = report(tmp_path, summary(soft=94.2)).replace("\N{NO-BREAK SPACE}", " ")
    for text in ("95.0 ± 0.5", "94.2 ± 0.5", "+4.0 ± 0.7", "+0.5 ± 0.7", "8 of 8", "1.5 of 8", "98.1", "the paper"):
        assert text in html
    assert "wins against dense 7: +4.0 ± 0.7 points" in html
    assert "shows no difference within two standard errors from dense 7" in html
    assert "has no dense layer of its executed width (9)" in html
    assert "tree &lt;b&gt;$8$&lt;/b&gt; (1.5 of 8)" in html.partition("Collapsed")[2]
    assert not re.search("<b>|Unfinished", html)
    assert "fastff compare small --data digits --seeds 2" in html


def test_one_seed_has_no_errors(tmp_path):
    html = report(tmp_path, summary(seeds=1, done=3))
    assert "is ahead of dense 7: +4.0 points" in html
    assert "no error is known" in html
    assert "±" not in html.replace("mean ± standard error", "")
    assert 'scope="col">soft' not in html
    assert re.search(r"Unfinished.*5 of\s+8 runs are missing", html)


def test_is_one_file_and_reproducible(tmp_path):
    (tmp_path / "runs" / "run-4").mkdir(parents=True)
    save_file(
        {"mean_inputs": np.zeros((4, 3, 5, 5), np.uint8)}, tmp_path / "runs" / "run-4" / "mean_inputs.safetensors"
    )
    html = report(tmp_path, summary())
    assert html == report(tmp_path, summary())
    assert html.count('<img src="data:image/png;base64,') == 4
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r'<script|<link|@import|url\((?!#)|(src|href)="(?!#|data:)', html)
    assert html.count("<svg") == html.count("<figcaption")
    assert [p.name for p in tmp_path.iterdir() if "report" in p.name] == ["report.html"]


def test_a_comparison_without_results(tmp_path):
    assert "8 of\n8 runs are missing" in report(tmp_path, {**summary(done=0), "rows": [], "samples": {}})


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "x"}', json.dumps({**summary(), "rows": [{}]})])
def test_a_bad_comparison_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(ValueError, match=r"comparison\.json") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_table_for_the_console():
    content = summary(soft=94.2)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(accuracy_table(content))
    for text in ("tree <b>$8$</b>", "95.0 ± 0.5", "94.2 ± 0.5", "+4.0 ± 0.7", "1.5 of 8", "518"):
        assert text in captured.get()
    assert against_dense(content, content["rows"][3]) is None  # itself
    assert plus_minus(metric(98.123, 0.041)) == "98.12 ± 0.04"
