"""Write the README's tables from the comparisons in results/*.json: `python results/tables.py`.

The README marks the place of a table with `<!-- table: NAME -->` and `<!-- end -->`, NAME.json lying beside this file.
"""

import json
import re
import sys
from pathlib import Path

from fastff.train.report.rows import against_dense, count, is_routed, plus_minus

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
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


def main() -> int:
    """Rewrite the README; with --check only tell whether it is up to date."""
    text = README.read_text()

    def fill(match: re.Match[str]) -> str:
        summary = json.loads((HERE / f"{match[1]}.json").read_text())
        return f"<!-- table: {match[1]} -->\n{table(summary)}\n<!-- end -->"

    filled = re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)
    if "--check" in sys.argv:
        return int(filled != text)
    README.write_text(filled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
