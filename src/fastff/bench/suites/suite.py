"""A named comparison."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastff.bench.group import Group
from fastff.bench.settings import Settings


@dataclass(frozen=True)
class Suite:
    """A comparison by name.

    Attributes:
        title: what it shows, a line.
        groups: of given settings; cheap, nothing is built yet.
        axis: of the plot: "tokens" or "width".
        base: what the table calls that to which ratios are taken.
        rounds, budget: at most these, whatever the settings say.
    """

    title: str
    groups: Callable[[Settings], list[Group]]
    axis: str = "tokens"
    base: str = "dense"
    rounds: int | None = None
    budget: float | None = None

    def limited(self, settings: Settings) -> Settings:
        """The settings within the suite's own limits."""
        rounds = settings.rounds if self.rounds is None else min(self.rounds, settings.rounds)
        budget = settings.budget if self.budget is None else min(self.budget, settings.budget)
        return replace(settings, rounds=rounds, budget=budget)
