"""Ctrl-C and SIGTERM, turned into an event, so that a run ends after a whole step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was interrupted and has left a checkpoint; run it again with resume."""


_set_by_signals: threading.Event | None = None


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the loop ends after a whole step; a second one ends at once.

    Within another one it is the same event: none gets lost on the way in.
    """
    global _set_by_signals
    if _set_by_signals is not None or threading.current_thread() is not threading.main_thread():
        yield _set_by_signals or threading.Event()
        return
    event = _set_by_signals = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        _set_by_signals = None
        for number, handler in before.items():
            signal.signal(number, handler)
