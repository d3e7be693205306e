"""Write the tables and pictures of the README and the docs from results/**/*.json: `python results/tables.py`.

A page marks the place of a table with `<!-- table: NAME -->` and `<!-- end -->`, NAME.json lying beside this file: a
comparison (accuracy) or the results of a benchmark of layers or models (speed), of which, for layers, a second word
picks warm or cold caches.
"""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pictures  # beside this file
from scipy.stats import linregress

from fastff.bench.duration import duration
from fastff.bench.suites import generate, models
from fastff.hf.pretrain.budget import usual_growth
from fastff.runs.mean_and_error import mean_and_error
from fastff.train.report.rows import against_dense, count, is_routed, plus_minus

HERE = Path(__file__).parent
PAGES = [HERE.parent / "README.md", *(HERE.parent / "docs").rglob("*.md")]
SEQUENCES = {"models": models.LENGTH, "generate": generate.NEW}  # tokens of one
HEAD = (
    "| layer | neurons | executed | test accuracy % | published | effective leaves "
    "| dense of the same cost | multiply-adds, inference |"
)


def table(summary: dict) -> str:
    """A comparison as a Markdown table."""
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for row in summary["rows"]:
        facts, metrics = row["facts"], row["metrics"]
        published, difference = row["published"].get("test_accuracy"), against_dense(summary, row)
        leaves = f"{metrics['effective_leaves']['mean']:.1f} of {row['leaves']}" if is_routed(row) else ""
        versus = f"{plus_minus(difference.dense['metrics']['test_accuracy'])} ({difference})" if difference else ""
        cells = (
            row["label"],
            count(facts["training_width"]),
            count(facts["inference_width"]),
            plus_minus(metrics["test_accuracy"]),
            published or "",
            leaves,
            versus,
            count(facts["inference_multiply_adds"]),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    runs = summary["runs"]
    seeds = sorted({row["seeds_done"] for row in summary["rows"]})
    spread = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    errors = "one seed a row" if seeds == [1] else f"{spread} seeds a row, mean ± standard error"
    lines.append(f"\n{runs['done']} runs, {errors}; torch {summary['versions']['torch']}.")
    return "\n".join(lines)


def finetune_table(summary: dict) -> str:
    """Models fine-tuned on one task, side by side, as a Markdown table."""
    rows = summary["models"]
    columns = {
        "feedforward layer": [row["title"] for row in rows],
        "neurons": [_neurons(row, "training") for row in rows],
        "executed": [_neurons(row, "inference") for row in rows],
        "pretraining loss": [f"{row['pretraining_loss']:.3f}" for row in rows],
        "accuracy %": [f"{row['accuracy']['mean']:.2f} ± {row['accuracy']['error']:.2f}" for row in rows],
        "kept": [f"{100 * row['accuracy_kept']:.1f} %" for row in rows],
    }
    for size in rows[0]["inference_seconds"]:
        columns[f"ms a sample, batch {size}"] = [f"{row['inference_seconds'][size]:.2f}" for row in rows]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)]
    samples, versions = summary["samples"], summary["versions"]
    lines.append(
        f"\n{count(samples['train'])} training, {count(samples['validation'])} validation samples, "
        f"{summary['settings']['seeds']} seeds, mean ± standard error; {summary['threads']} thread; "
        f"torch {versions['torch']}, transformers {versions['transformers']}."
    )
    return "\n".join(lines)


def _neurons(row: dict, kind: str) -> str:
    return count(row["feedforward"][0][f"{kind}_width"] if row["feedforward"] else 0)


def decoder_table(summary: dict) -> str:
    """Decoders that differ in their feedforward layers, as a Markdown table: validation loss as training goes on."""
    points = [row["tokens"] for row in summary["runs"][0]["curve"]]
    shown = sorted({points[len(points) * share // 4 - 1] for share in (1, 2, 4)})
    rates = len({run["lr"] for run in summary["runs"]}) > 1
    heads = ["feedforward layer", *(["learning rate"] if rates else []), "neurons", "executed", "share"]
    heads += [f"loss after {tokens / 1e6:.1f} M tokens" for tokens in shown]
    gain = gain_of(summary["runs"])
    heads += ["gain kept"] if gain else []
    heads += ["effective leaves", "training time", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    layers, by_layer = summary["layers"], defaultdict(list)
    for run in summary["runs"]:
        by_layer[run["layer"], run["grow"], run["lr"]].append(run)
    for runs in sorted(by_layer.values(), key=lambda runs: mean(run["validation_loss"] for run in runs)):
        neurons, executed = runs[0]["training_width"], runs[0]["inference_width"]
        losses = [{row["tokens"]: row["validation_loss"] for row in run["curve"]} for run in runs]
        usual = not runs[0]["layer"].startswith("tree") or runs[0]["grow"] == usual_growth(summary["tokens"])
        growth = "" if usual else f", grow {runs[0]['grow']}"
        cells = [runs[0]["layer"] + growth, *([f"{runs[0]['lr']:g}"] if rates else [])]
        cells += [count(neurons // layers), count(executed // layers)]
        cells += [f"{100 * executed / neurons:.1f} %"]
        cells += [plus_minus(mean_and_error([loss[tokens] for loss in losses]), digits=3) for tokens in shown]
        if gain:
            none, dense = gain
            cells.append(f"{100 * (none - mean(run['validation_loss'] for run in runs)) / (none - dense):.0f} %")
        routed = [layer for run in runs for layer in run.get("layers", {}).values() if layer["leaves"] > 1]
        used = f"{mean(layer['effective_leaves'] for layer in routed):.0f} of {routed[0]['leaves']}" if routed else ""
        cells += [used, f"{mean(run['seconds'] for run in runs) / 60:.0f} min", str(len(runs))]
        lines.append("| " + " | ".join(cells) + " |")
    versions = summary["runs"][0]["versions"]
    lines.append(
        "\nMean ± standard error where there are several seeds; 1 thread; "
        f"torch {versions['torch']}, transformers {versions['transformers']}."
    )
    return "\n".join(lines)


def gain_of(runs: list[dict]) -> tuple[float, float] | None:
    """Loss of the layer of one neuron, which is as good as none, and of the best dense one; None without the former."""
    losses = defaultdict(list)
    for run in runs:
        if run["layer"].startswith("dense:"):
            losses[run["layer"], run["lr"]].append(run["validation_loss"])
    none = [mean(found) for (layer, _), found in losses.items() if layer.startswith("dense:width=1,")]
    return (min(none), min(map(mean, losses.values()))) if none else None


def budget_table(summary: dict) -> str:
    """Validation loss of decoders after training with several budgets, and how it falls, as a Markdown table.

    Of trees that grew during different shares of the steps the better ones count. The fit is a power law, a line
    through all runs in logarithms; its error is the standard error of the slope.
    """
    losses: dict[str, dict[int, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    budgets: set[int] = set()
    for name in summary["budgets"]:
        of_budget = json.loads((HERE / f"{name}.json").read_text())
        budgets.add(of_budget["tokens"])
        for run in of_budget["runs"]:
            losses[run["layer"]][of_budget["tokens"]][run["grow"]].append(run["validation_loss"])
    heads = [
        "feedforward layer",
        *(f"{tokens / 1e6:.0f} M tokens" for tokens in sorted(budgets)),
        "for twice the tokens",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    best = {layer: {t: min(of.values(), key=mean) for t, of in found.items()} for layer, found in losses.items()}
    for layer, found in sorted(best.items(), key=lambda pair: mean(pair[1][max(pair[1])])):
        if len(found) < 3:
            continue
        cells = [plus_minus(mean_and_error(found[t]), digits=3) if t in found else "" for t in sorted(budgets)]
        points = [(math.log2(t), math.log(loss)) for t, runs in found.items() for loss in runs]
        slope, error = slope_and_error(*zip(*points, strict=True))
        fall = [100 * (1 - math.exp(slope)), 100 * error]
        lines.append("| " + " | ".join([layer, *cells, f"−{fall[0]:.1f} ± {fall[1]:.1f} %"]) + " |")
    return "\n".join(lines)


def slope_and_error(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the line of least squares through three points or more."""
    fit = linregress(x, y)
    return float(fit.slope), float(fit.stderr)


def distil_table(summary: dict) -> str:
    """Distilled sentence embedders beside the original, as a Markdown table: what is kept, and the speed."""
    found = summary["distilled"]
    shapes = list(found["original"]["milliseconds"])
    heads = ["feedforward layer", "missed by layer", "cosine", "agreement", "judged", "probe %"]
    heads += [f"{shape.replace('x', ' x ')} tokens" for shape in shapes]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in found.items():
        base = found["original, int8" if name.endswith("int8") else "original"]["milliseconds"]
        trained = found[name.removesuffix(", int8")]
        cells = [
            name,
            f"{100 * trained['layerwise']:.1f} %" if "layerwise" in trained else "",
            f"{trained['kept']['cosine with the original'][1]:.3f}" if "kept" in trained else "",
            f"{row['agreement']:.3f}",
            f"{row['judged']:.3f}",
            f"{100 * row['probe']:.1f}",
            *(f"{base[s] / row['milliseconds'][s]:.2f}x, {duration(row['milliseconds'][s] / 1e3)}" for s in shapes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    what = f"{count(summary['tokens'])} tokens; times faster than the original in the same precision"
    lines.append(f"\n{what}; {_machine(summary)}")
    return "\n".join(lines)


def causal_table(summary: dict) -> str:
    """Distilled decoders beside the original, as a Markdown table: what is kept, and the time of a layer."""
    found = summary["causal"]
    shapes = list(found["original"]["milliseconds"])
    heads = ["feedforward layer", "missed by layer", "loss", *shapes]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in found.items():
        base = found["original, int8" if name.endswith("int8") else "original"]["milliseconds"]
        trained, ms = found[name.removesuffix(", int8")], row["milliseconds"]
        missed = f"{100 * trained['missed_mean']:.1f} %" if "missed_mean" in trained else ""
        times = [f"{base[s] / ms[s]:.1f}x, {duration(ms[s] / 1e3)}" for s in shapes]
        lines.append("| " + " | ".join([name, missed, f"{row['loss']:.3f}", *times]) + " |")
    what = f"{count(summary['tokens'])} tokens; times faster than the original in the same precision"
    lines.append(f"\n{what}; {_machine(summary)}")
    return "\n".join(lines)


def masked_table(summary: dict) -> str:
    """Masked language models of several encoders, layers and budgets, as a Markdown table.

    Gain kept: of what the dense layer gains over no feedforward layer (one neuron) with as many tokens.
    """
    ends = {(*_training(run), run["settings"]["feedforward"]): run["validation_loss"] for run in summary["runs"]}
    heads = ["encoder", "tokens", "learning rate", "feedforward layer", "neurons", "executed"]
    heads += ["validation loss", "gain kept"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for run in summary["runs"]:
        settings = run["settings"]
        layers = int(re.findall("num_hidden_layers=([0-9]+)", settings["shape"])[0])
        neurons, executed = (run[name] // layers for name in ("training_width", "inference_width"))
        none, dense = (ends.get((*_training(run), layer), math.nan) for layer in ("dense:width=1", "dense:width=512"))
        gain = (none - run["validation_loss"]) / (none - dense) if dense < none else math.nan
        cells = [settings["model"], f"{run['tokens'] / 1e6:.1f} M", f"{settings['lr']:g}", settings["feedforward"]]
        cells += [count(neurons), count(executed), f"{run['validation_loss']:.3f}"]
        lines.append("| " + " | ".join([*cells, "" if math.isnan(gain) else f"{100 * gain:.0f} %"]) + " |")
    versions = summary["runs"][0]["versions"]
    lines.append(f"\nOne seed; 1 thread; torch {versions['torch']}, transformers {versions['transformers']}.")
    return "\n".join(lines)


def _training(run: dict) -> tuple:
    """What runs have in common that differ in their feedforward layers alone."""
    return tuple(run["settings"][name] for name in ("model", "tokens", "lr"))


def speed_table(results: dict, cache: str | None) -> str:
    """A benchmark as a Markdown table: how many times faster than the dense layer, and the time, by tokens or width."""
    rows, settings = [row for row in results["rows"] if cache in (None, row["cache"])], results["settings"]
    by_width = len({row["width"] for row in rows if row["series"] == "dense"}) > 1
    name, axis = ("series", "width") if by_width else ("candidate", "tokens")
    lines = []
    for kind, state in dict.fromkeys((row["pass"], row["cache"]) for row in rows):
        group = [row for row in rows if (row["pass"], row["cache"]) == (kind, state)]
        places = sorted({_place(row, axis) for row in group})
        cells = {(row[name], _place(row, axis)): row for row in group}
        heads = [f"2^{place}" if by_width else count(place) for place in places]
        lines += [
            f"| {kind}, {state} caches, {axis}: | " + " | ".join(heads) + " |",
            "|---" * (len(places) + 1) + "|",
        ]
        for label in dict.fromkeys(row[name] for row in group):
            found = [_speed(cells.get((label, place))) for place in places]
            lines.append(f"| {label} | " + " | ".join(found) + " |")
        lines.append("")
    width = f", {count(rows[0]['tokens'])} tokens" if by_width else ""
    lines.append(f"{settings['in_features']} features in and out{width}; {_machine(results)}")
    return "\n".join(lines)


def equal_loss_table(results: dict) -> str:
    """Layers beside the dense layer of the same loss, as a Markdown table: times faster, the time and its precision."""
    found = results["equal_loss"]
    calls = list(dict.fromkeys((row["pass"], row["tokens"]) for row in found))
    heads = ["layer", "loss", "dense of that loss", *(f"{kind}, {count(tokens)}" for kind, tokens in calls)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for layer in dict.fromkeys(row["layer"] for row in found):
        by_call = {(row["pass"], row["tokens"]): row for row in found if row["layer"] == layer}
        any_row = next(iter(by_call.values()))
        width = any_row["dense_width"]
        more = "> " if any_row["beyond"] else ""
        dense = f"{more}{width:.0f}" if width else "below"
        cells = [layer, f"{any_row['loss']:.3f}", dense]
        for call in calls:
            row = by_call.get(call)
            speedup = f"{more}{row['speedup']:.2f}x, " if row and row["speedup"] else ""
            cells.append(f"{speedup}{duration(row['seconds'])} {row['precision']}" if row else "")
        lines.append("| " + " | ".join(cells) + " |")
    dense = ", ".join(
        f"{known['text'].partition('=')[2].partition(',')[0]}: {known['loss']:.3f}"
        for known in sorted(results["losses"], key=lambda known: -known["loss"])
        if known["text"].startswith("dense")
    )
    features = f"{results['settings']['in_features']} features in and out"
    lines.append(f"\nDense layers by width: {dense}. {features}; {_machine(results)}")
    return "\n".join(lines)


def model_table(results: dict) -> str:
    """Whole models as Markdown tables, one for each pass: by batch and dtype the time and both ratios."""
    rows, new = results["rows"], SEQUENCES[results["rows"][0]["suite"]]
    lines = []
    for kind in dict.fromkeys(row["pass"].partition(",")[0] for row in rows):
        group = [row for row in rows if row["pass"].partition(",")[0] == kind]
        places = list(dict.fromkeys((row["dtype"], row["tokens"], row["cache"]) for row in group))
        heads = [
            f"batch {max(1, tokens // new)}, {dtype}" + (f", {cache}" if cache != "warm" else "")
            for dtype, tokens, cache in places
        ]
        lines += [f"| {kind} | " + " | ".join(heads) + " |", "|---" * (len(places) + 1) + "|"]
        cells = {(row["candidate"], row["dtype"], row["tokens"], row["cache"]): row for row in group}
        for label in dict.fromkeys(row["candidate"] for row in group):
            found = [_model_speed(cells.get((label, *place)), kind) for place in places]
            lines.append(f"| {label} | " + " | ".join(found) + " |")
        lines.append("")
    base = next(row["candidate"] for row in rows if row["ratio_to_dense"] == 1)
    what = "New tokens a second" if kind == "generation" else "Time of a call"
    size = f"{results['settings']['in_features']} features"
    lines.append(f"{what}, time in that of no feedforward, times faster than {base}. {size}; {_machine(results)}")
    return "\n".join(lines)


def _model_speed(row: dict | None, kind: str) -> str:
    if row is None:
        return ""
    speed = f"{row['tokens'] / row['median_s']:.0f}/s" if kind == "generation" else duration(row["median_s"])
    bound, dense = row["time_to_bound"], row["ratio_to_dense"]
    ratios = (f"{bound:.2f}" if bound else "", f"{dense:.1f}x" if dense else "")
    return ", ".join(filter(None, (speed, *ratios)))


def _machine(results: dict) -> str:
    threads, machine, versions = results["settings"]["threads"], results["machine"], results["versions"]
    if "gpu" in machine:
        return f"{machine['gpu']}; torch {versions['torch']}, triton {versions['triton']}."
    transformers = f", transformers {versions['transformers']}" if "transformers" in versions else ""
    return (
        f"{threads} thread{'s' * (threads > 1)}, {machine['cpu']}, {machine['instruction_set']}, "
        f"torch {versions['torch']}{transformers}."
    )


def _place(row: dict, axis: str) -> int:
    return row["tokens"] if axis == "tokens" else round(math.log2(row["width"] + 1))


def _speed(row: dict | None) -> str:
    if row is None:
        return ""
    ratio = row["ratio_to_dense"]
    shown = "" if ratio is None else f"{ratio:.0f}x, " if ratio >= 10 else f"{ratio:.1f}x, "
    return shown + duration(row["median_s"])


# By the key that only summaries of one kind have.
TABLES = {
    "budgets": budget_table,
    "models": finetune_table,
    "equal_loss": equal_loss_table,
    "distilled": distil_table,
    "causal": causal_table,
    "layers": decoder_table,
    "masked": masked_table,
}


def any_table(summary: dict, cache: str | None) -> str:
    """The table for results of whichever kind; of a benchmark's speeds those with these caches."""
    for key, make in TABLES.items():
        if key in summary:
            return make(summary)
    if "settings" not in summary:
        return table(summary)
    return model_table(summary) if summary["rows"][0]["suite"] in SEQUENCES else speed_table(summary, cache)


def main() -> int:
    """Rewrite the pages; with --check only tell whether they are up to date."""

    def fill(match: re.Match[str]) -> str:
        name, _, cache = match[1].partition(" ")
        written = any_table(json.loads((HERE / f"{name}.json").read_text()), cache or None)
        return f"<!-- table: {match[1]} -->\n{written}\n<!-- end -->"

    check = "--check" in sys.argv
    stale = pictures.draw(check)
    for page in PAGES:
        text = page.read_text()
        filled = re.sub(r"<!-- table: ([\w/-]+(?: \w+)?) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)
        stale |= filled != text
        if not check:
            page.write_text(filled)
    return int(stale and check)


if __name__ == "__main__":
    sys.exit(main())
