"""Runs suites: builds the candidates of each group, checks them, times them, keeps the results."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastff.bench.candidate import Candidate, UnavailableError
from fastff.bench.check import DisagreementError, check_gradients, check_output, check_steps
from fastff.bench.duration import duration
from fastff.bench.graph import graphed
from fastff.bench.group import Group
from fastff.bench.inputs import Rotation
from fastff.bench.machine import free_memory, threads, wait
from fastff.bench.measure import COLD, FEWEST, WARM, Subject, rounds_of
from fastff.bench.opponents import Compiled
from fastff.bench.passes import STEP, call_of, is_training, mode_of
from fastff.bench.results import Results
from fastff.bench.settings import Settings
from fastff.bench.suites import SUITES

MANY_TOKENS = 128  # from here on time is proportional to them
CHECKED_TOKENS = 64  # at least, from as many batches as that takes
OnProgress = Callable[[str, int, int], None]  # what is being done, steps done, all steps
OnResult = Callable[[Results], None]


def run(
    suites: Sequence[str],
    settings: Settings,
    folder: Path,
    on_progress: OnProgress | None = None,
    on_result: OnResult | None = None,
) -> list[Results]:
    """Run suites and write a JSON file for each into `folder`, which always holds what has been measured.

    Args:
        suites: keys of `SUITES`.
        settings: shape and method.
        folder: made if it does not exist.
        on_progress: called before each step.
        on_result: called with each suite's results at its end, also where it ends by an interrupt.

    Returns:
        The results, a suite each.

    Raises:
        ValueError: no such suite, or settings that one of them cannot be run with; nothing is written then.
        DisagreementError: a candidate put out something else than its definition. It is left out; this is raised when
            the others have been measured.
        RuntimeError: a candidate failed in another way than for want of memory; raised at the end too.
    """
    for name in suites:
        if name not in SUITES:
            raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {name!r}")
    plans = {name: deque(SUITES[name].groups(settings)) for name in suites}
    faults: list[Exception] = []
    results = []
    with threads(settings.threads):
        for name, groups in plans.items():
            with torch.device(settings.device):
                results.append(Results(name, folder, SUITES[name].limited(settings)))
            try:
                _Suite(results[-1], groups, on_progress or (lambda *_: None), faults).run()
            finally:
                if on_result is not None:
                    on_result(results[-1])
    if faults:
        worst = min(faults, key=lambda fault: not isinstance(fault, DisagreementError))
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise type(worst)(f"{worst}{more}; left out of the results")
    return results


class _Suite:
    """One suite under way."""

    def __init__(
        self, results: Results, groups: deque[Group], on_progress: OnProgress, faults: list[Exception]
    ) -> None:
        self.results, self.groups, self.on_progress, self.faults = results, groups, on_progress, faults
        self.settings = results.settings
        self.caches = (WARM, COLD) if self.settings.cold else (WARM,)
        self.all = sum(len(group.candidates) for group in self.groups) * (1 + len(self.caches))
        self.done = 0
        # Of a pass and series the last measurement: tokens, work, seconds a call.
        self.known: dict[tuple[str, str], tuple[int, int, float]] = {}

    def run(self) -> None:
        while self.groups:
            self._measure(self.groups.popleft())  # so that what a group holds goes before the next is built

    def _measure(self, group: Group) -> None:
        subjects = []
        rotations: dict[torch.dtype, Rotation] = {}
        for candidate in group.candidates:
            self._tell(f"{group.tokens} tokens, {group.kind}: {candidate.label}", 1)
            try:
                subjects.append((candidate, self._prepare(group, candidate, rotations)))
            except Exception as error:
                self._leave_out(group, candidate, error)
        for cache in self.caches:
            subjects = self._time(group, cache, subjects)

    def _prepare(self, group: Group, candidate: Candidate, rotations: dict[torch.dtype, Rotation]) -> Subject:
        """A candidate built, checked and run once."""
        training, device = is_training(group.kind), torch.device(self.settings.device)
        with device:  # never around what is timed: every function of PyTorch would be called through Python
            self._foresee(group, candidate)
            torch.manual_seed(self.settings.seed)
            module = candidate.build(training=training)
            if candidate.dtype not in rotations:
                rotations[candidate.dtype] = group.rotation(self.settings, candidate.dtype)
            rotation = rotations[candidate.dtype]
            if training:
                check_gradients(candidate, module, rotation.batches)
            if group.kind == STEP:
                check_steps(candidate, module, rotation.batches)
        call = call_of(group.kind, module, candidate.optimizer and candidate.optimizer(module))
        with mode_of(group.kind):
            if device.type != "cpu" or isinstance(module, Compiled):
                call(*rotation.batches[0])  # compiles kernels, which is not timed
                wait(device)
            start = time.perf_counter()
            first = call(*rotation.batches[0])
            wait(device)
            seconds = time.perf_counter() - start
            self._refuse_slow(seconds)
            timed = graphed(call, module, rotation.batches) if candidate.graph else call
            subject = Subject(timed, rotation, seconds, whole=candidate.graph)
            if not training:
                some = rotation.batches[: -(-CHECKED_TOKENS // group.tokens)]
                outputs = subject.call() if subject.whole else [first, *(call(*batch) for batch in some[1:])]
                with device:
                    (group.check or check_output)(candidate, module, [x for x, *_ in some], outputs[: len(some)])
            subject.calibrate()
        self.known[group.kind, candidate.series] = (group.tokens, _work(group, candidate), subject.seconds)
        return subject

    def _foresee(self, group: Group, candidate: Candidate) -> None:
        """Leave out what would not fit, or would take too long, going by the same series' last call."""
        need = candidate.weight_bytes + candidate.working_bytes(group.tokens, training=is_training(group.kind))
        free = free_memory()
        if free is not None and need > 0.9 * free:
            raise _LeftOutError(f"needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} are free")
        tokens, work, seconds = self.known.get((group.kind, candidate.series), (0, 1, 0.0))
        if tokens >= MANY_TOKENS or tokens == group.tokens:  # few tokens do not tell how long many take
            self._refuse_slow(seconds * _work(group, candidate) / work, "about ")

    def _refuse_slow(self, seconds: float, about: str = "") -> None:
        if seconds > self.settings.budget:
            raise _LeftOutError(
                f"one call takes {about}{duration(seconds)}, more than the budget of {self.settings.budget:g} s"
            )

    def _leave_out(self, group: Group, candidate: Candidate, error: Exception) -> None:
        """Go on without a candidate; what should not have happened to it becomes a fault."""
        reason = str(error)
        if isinstance(error, DisagreementError):
            self.faults.append(error)
        elif _is_out_of_memory(error):
            reason = "out of memory"
        elif not isinstance(error, _LeftOutError | UnavailableError):
            reason = f"{type(error).__name__}: {next(iter(reason.splitlines()), '')}"
            self.faults.append(RuntimeError(f"{candidate.label} failed: {reason}"))
        self.results.leave_out(group, candidate, reason)

    def _time(
        self, group: Group, cache: str, subjects: list[tuple[Candidate, Subject]]
    ) -> list[tuple[Candidate, Subject]]:
        """The rounds of a group; rows are added at their end, whatever ended them. Returns those who did not fail."""
        start = self.done
        running = [subject for _, subject in subjects]
        rounds, budget = self.settings.rounds, min(group.budget, self.settings.budget)
        try:
            with mode_of(group.kind):
                for i, _ in enumerate(rounds_of(running, cache=cache, rounds=rounds, budget=budget)):
                    self.done = start + i * len(group.candidates) // (rounds * len(running))
                    self._tell(f"{group.tokens} tokens, {group.kind}, {cache}: {len(running)} candidates in turn")
        finally:
            good = [pair for pair in subjects if pair[1].failure is None]
            self.results.add(group, cache, [(c, s.samples) for c, s in good if len(s.samples) >= FEWEST])
        for candidate, subject in subjects:
            if subject.failure is not None:
                self._leave_out(group, candidate, subject.failure)
        self.done = start + len(group.candidates)
        return good

    def _tell(self, text: str, steps: int = 0) -> None:
        self.on_progress(f"{self.results.suite}: {text}", self.done, self.all)
        self.done += steps


class _LeftOutError(Exception):
    """A candidate is not measured; the message says why."""


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _work(group: Group, candidate: Candidate) -> int:
    """What a call's time is about proportional to."""
    return group.tokens * max(1, candidate.executed)
