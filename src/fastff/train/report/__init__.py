"""The report of a comparison: one HTML file without references to anything outside it."""

import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fastff.runs.files import write_atomically
from fastff.train.report import leaves, plots
from fastff.train.report.rows import KINDS, Row, Summary, against_dense, count, has_collapsed, is_routed, plus_minus
from fastff.train.report.style import Picture
from fastff.train.report.table import accuracy_table
from fastff.train.report.words import in_words

__all__ = ["accuracy_table", "in_words", "write_report"]

_SUMMARY = {
    "name": str,
    "description": str,
    "base": dict,
    "seeds": int,
    "runs": dict,
    "versions": dict,
    "samples": dict,
    "rows": list,
}
_ROW = {
    "label": str,
    "layer": str,
    "published": dict,
    "facts": dict,
    "settings": dict,
    "first_run": str,
    "metrics": dict,
    "curves": dict,
    "trials": list,
}


def write_report(folder: Path) -> Path:
    """Write report.html beside the comparison.json in `folder`, from nothing but the files there.

    Args:
        folder: as `fastff.train.compare.compare` fills it.

    Returns:
        The path of the report.

    Raises:
        ValueError: comparison.json is missing, damaged or something else, or report.html cannot be written.
    """
    folder = Path(folder)
    path = folder / "comparison.json"
    summary = _load(path)
    try:
        html = _html(folder, summary)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not the comparison.json of this version of fastff: {error!r}") from error
    report = folder / "report.html"
    try:
        write_atomically(report, lambda p: _write(p, html))
    except OSError as error:
        raise ValueError(f"{report} cannot be written: {error.strerror}") from None
    return report


def _write(path: Path, html: str) -> None:
    path.write_bytes(html.encode())  # bytes: the same line ends on every system


def _load(path: Path) -> Summary:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; run the comparison first") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not _fits(summary, _SUMMARY) or not all(_fits(row, _ROW) for row in summary["rows"]):
        raise ValueError(f"{path} is not the comparison.json of a comparison")
    return summary


def _fits(value: Any, types: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in types.items())


def _html(folder: Path, summary: Summary) -> str:
    package = files(__name__)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"pm": plus_minus, "count": count, "settings": _settings, "number": _number}
    template = environment.from_string((package / "report.html.jinja").read_text(encoding="utf-8"))
    rows = summary["rows"]
    data = str(summary["base"].get("data", ""))
    return template.render(
        summary=summary,
        data=data,
        command=f"fastff compare {summary['name']} --data {shlex.quote(data)} --seeds {summary['seeds']}",
        css=Markup((package / "report.css").read_text(encoding="utf-8")),  # ours, so not to be escaped
        words=in_words(summary),
        differences=[against_dense(summary, row) for row in rows],
        collapsed=has_collapsed,
        routed=is_routed,
        pictures=[(title, [_embedded(p) for p in group]) for title, group in _pictures(summary) if group],
        grids=leaves.mean_inputs(folder, rows),
        kinds=KINDS,
        soft=any("test_soft_accuracy" in row["metrics"] for row in rows),
        published=any(row["published"] for row in rows),
    )


def _pictures(summary: Summary) -> list[tuple[str, list[Picture]]]:
    """The figures by section."""
    rows: list[Row] = summary["rows"]
    if not rows:
        return []
    accuracy = [
        plots.accuracy_against(summary, "inference_width", "neurons executed per sample"),
        plots.accuracy_against(summary, "training_width", "neurons trained"),
    ]
    routing = [
        plots.entropy_curves(rows),
        plots.leaf_curves(rows),
        leaves.leaf_usage(rows),
        leaves.node_entropy(rows),
    ]
    return [
        ("Accuracy and width", accuracy),
        ("Learning curves", [plots.learning_curves(rows)]),
        ("Trees and leaves", [p for p in routing if p is not None]),
    ]


def _embedded(picture: Picture) -> dict[str, Any]:
    return {"svg": Markup(picture.svg), "alt": picture.alt, "caption": picture.caption}  # matplotlib has escaped it


def _settings(settings: dict[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{name}={_number(value)}" for name, value in settings.items()) or "–"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
