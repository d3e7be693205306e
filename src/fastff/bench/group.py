"""What is measured side by side."""

from dataclasses import dataclass

from fastff.bench.candidate import Candidate


@dataclass(frozen=True)
class Group:
    """Candidates that take turns.

    Attributes:
        kind: what a call is, one of `fastff.bench.passes`.
        tokens: of each call.
        candidates: one of them is the base of the ratios.
    """

    kind: str
    tokens: int
    candidates: list[Candidate]
