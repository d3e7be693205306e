"""The accuracies of a comparison as a table for the console."""

from rich import box
from rich.table import Table
from rich.text import Text

from fastff.train.report.rows import Row, Summary, against_dense, count, has_collapsed, is_routed, plus_minus

COLUMNS = ("executed", "test %", "soft %", "leaves used", "multiply-adds", "against dense")
COLOURS = {"wins": "green", "loses": "red"}


def accuracy_table(summary: Summary) -> Table:
    """One line per row of `summary` (the content of comparison.json), to fit a console; the report has more.

    Executed neurons and multiply-adds of a sample's inference, test accuracy hard and soft, effective leaves, and the
    difference to the dense layer that executes as many neurons.
    """
    runs = summary["runs"]
    table = Table(title=Text(f"{summary['name']}: {runs['done']} of {runs['all']} runs"), box=box.SIMPLE)
    table.add_column("layer")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in summary["rows"]:
        table.add_row(*_cells(summary, row))
    return table


def _cells(summary: Summary, row: Row) -> list[Text]:
    facts, metrics = row["facts"], row["metrics"]
    difference = against_dense(summary, row)
    leaves = f"{metrics['effective_leaves']['mean']:.1f} of {row['leaves']}" if is_routed(row) else "–"
    return [
        Text(row["label"]),  # Text: brackets in a label are no markup
        Text(count(facts["inference_width"])),
        Text(plus_minus(metrics["test_accuracy"])),
        Text(plus_minus(metrics.get("test_soft_accuracy"))),
        Text(leaves, style="yellow" if has_collapsed(row) else ""),
        Text(count(facts["inference_multiply_adds"])),
        Text(str(difference), style=COLOURS.get(difference.verdict, "")) if difference else Text("–"),
    ]
