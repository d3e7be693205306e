"""The mean over the seeds of a row, and how well it is known."""

import math
from statistics import fmean, stdev
from typing import Any


def mean_and_error(values: list[float]) -> dict[str, Any]:
    """Mean and standard error of the mean (None for a single value)."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": fmean(values), "error": error, "values": values}
