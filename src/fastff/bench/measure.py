"""Timing of candidates side by side: in rounds, each sample at least a millisecond, on inputs in rotation.

All candidates of a group are ready at once and take turns, so that what else the machine does meets all alike. Warm: a
sample follows untimed calls on the inputs before it. Cold: a sample is one call, before which the caches are flushed.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import Tensor

from fastff.bench.inputs import Rotation
from fastff.bench.machine import caches, wait
from fastff.bench.passes import Call

WARM, COLD = "warm", "cold"
FEWEST = 3  # samples
SAMPLE_SECONDS = 1e-3
WARM_UP_SECONDS = 5e-3
LONG_SECONDS = 0.05  # a call as long fills the caches itself
VERY_LONG_SECONDS = 1.0
UNKNOWN_CACHE = 2**25  # bytes taken for the last cache where the system does not tell


@dataclass
class Subject:
    """What takes part in the rounds.

    Attributes:
        call: what is timed.
        rotation: what it is called with.
        seconds: about how long a call takes.
        whole: whether `call` is called with nothing, and makes the calls of the whole rotation.
        samples: seconds a call, one for each round.
        spent: seconds of this measurement so far, with what is not timed.
        failure: what a call raised, which ended this measurement.
    """

    call: Call
    rotation: Rotation
    seconds: float
    whole: bool = False
    samples: list[float] = field(default_factory=list)
    spent: float = 0.0
    position: int = 0
    failure: Exception | None = None

    def run(self, calls: int) -> float:
        """Seconds of so many calls on the next inputs."""
        call, device, made = self.call, self.rotation.device, calls
        batches: Sequence[tuple[Tensor, ...]]
        if self.whole:
            batches = ((),) * math.ceil(calls / len(self.rotation))
            made = len(batches) * len(self.rotation)
        else:
            batches = self.rotation.take(self.position, calls)
            self.position += calls
        stop = _start(device)
        for batch in batches:
            call(*batch)
        return stop() * calls / made

    def calibrate(self) -> None:
        """Learn how long a call takes, from enough of them to last a millisecond; a very long one is known already."""
        calls = 1
        if self.seconds > VERY_LONG_SECONDS:
            return
        while (taken := self.run(calls)) < SAMPLE_SECONDS:
            calls *= 2
        self.seconds = taken / calls

    def sample_warm(self) -> None:
        """One sample of at least a millisecond."""
        if self.seconds < LONG_SECONDS:
            self.run(min(len(self.rotation), math.ceil(WARM_UP_SECONDS / self.seconds)))
        calls = max(1, math.ceil(1.2 * SAMPLE_SECONDS / self.seconds))
        self.samples.append(self.run(calls) / calls)

    def sample_cold(self, flush: "Flush") -> None:
        """One call after a flush."""
        flush()
        self.samples.append(self.run(1))

    def is_due(self, rounds: int, budget: float) -> bool:
        """Whether another sample is to be taken."""
        if self.failure is not None:
            return False
        taken = len(self.samples)
        return taken < FEWEST or (taken < rounds and self.spent * (taken + 1) / taken <= budget)


def _start(device: torch.device) -> Callable[[], float]:
    """Once the device is idle, starts a clock; what it returns stops it when all is done, and says the seconds.

    On a GPU its own events are the clock: how long this process takes to notice the end is no part of a sample.
    """
    wait(device)
    if device.type == "cpu":
        begin = perf_counter()
        return lambda: perf_counter() - begin
    Event = getattr(torch, device.type).Event
    first, last = Event(enable_timing=True), Event(enable_timing=True)
    first.record()

    def stop() -> float:
        last.record()
        wait(device)
        return float(first.elapsed_time(last)) / 1e3

    return stop


class Flush:
    """Writes a buffer of 4 times the last cache, so that nothing else is left in the caches."""

    def __init__(self) -> None:
        size = 4 * max(caches().values(), default=UNKNOWN_CACHE)
        self.buffer = torch.zeros(size // 4, dtype=torch.int32)

    def __call__(self) -> None:
        self.buffer.add_(1)


def rounds_of(subjects: list[Subject], *, cache: str, rounds: int, budget: float) -> Iterator[Subject]:
    """Take the samples of all subjects, in turn and each round from another one on; yields after each sample.

    Args:
        subjects: their samples are forgotten first.
        cache: `WARM` or `COLD`.
        rounds: samples of each.
        budget: seconds after which a subject leaves the rounds, not before it has `FEWEST` samples.
    """
    for subject in subjects:
        subject.samples, subject.spent = [], 0.0
    flush = None
    if cache == COLD and subjects:
        with subjects[0].rotation.device:
            flush = Flush()
    for number in range(rounds):
        shift = number % max(1, len(subjects))
        for subject in subjects[shift:] + subjects[:shift]:
            if not subject.is_due(rounds, budget):
                continue
            start = perf_counter()
            try:
                with no_garbage_collection():
                    if flush is None:
                        subject.sample_warm()
                    else:
                        subject.sample_cold(flush)
            except Exception as error:  # the others go on
                subject.failure = error
            subject.spent += perf_counter() - start
            yield subject


def summary(samples: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return {"median_s": _rounded(median(samples)), "low_s": _rounded(low), "high_s": _rounded(high)}


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Within it Python does not look for cycles, which would fall into some sample."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
