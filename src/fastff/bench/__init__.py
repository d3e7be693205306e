"""Speed of the layers on this machine's CPU, beside everything that they are to be compared with: `fastff bench`.

`suites/` says what is compared, `candidate.py` and `opponents.py` what is timed, `passes.py` what one call is,
`check.py` that its result is right, `transformer.py` and `check_model.py` the same for whole models; `measure.py` how
it is timed, `runner.py` puts them together; `results.py`, `table.py` and `plots.py` show it.
"""

from fastff.bench.runner import run
from fastff.bench.settings import Settings
from fastff.bench.suites import SUITES

__all__ = ["SUITES", "Settings", "run"]
