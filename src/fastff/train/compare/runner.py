"""Run a comparison: in parallel, never a finished run twice, an interrupted one from where it stopped."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fastff.runs.files import write_json
from fastff.runs.interrupts import Interrupted, interrupts
from fastff.train.compare.comparison import Comparison, Run, runs_of
from fastff.train.compare.summary import summarise
from fastff.train.config import TrainConfig
from fastff.train.data import Data
from fastff.train.loop import load_config_data, load_result, train


def compare(
    comparison: Comparison,
    folder: str | Path,
    *,
    jobs: int = 1,
    on_result: Callable[[Run, dict[str, Any], int, int], None] | None = None,
) -> dict[str, Any]:
    """Train every run of `comparison` that has no result yet, and summarise them.

    Args:
        comparison: what to run.
        folder: holds runs/ (one folder a run) and comparison.json, rewritten after every run.
        jobs: runs at a time, each in a process of its own with its share of the CPU's threads.
        on_result: called in this process with a run, its result, the number of runs done and of all runs.

    Returns:
        The content of comparison.json (see `summarise`).

    Raises:
        ValueError: the data cannot be used, or `folder` cannot be written or holds something damaged.
        Interrupted: on Ctrl-C; call it again to go on.
    """
    folder = Path(folder)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    runs = runs_of(comparison)
    _data(*_data_key(runs[0].config))  # fails here, once, if the data cannot be used
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from None
    results: dict[str, dict[str, Any]] = {}

    def done(run: Run, result: dict[str, Any]) -> None:
        results[run.key] = result
        write_json(folder / "comparison.json", summarise(comparison, results))
        if on_result:
            on_result(run, result, len(results), len(runs))

    waiting = []
    for run in runs:
        if (run.folder(folder) / "result.json").exists():
            results[run.key] = load_result(run.folder(folder))
        else:
            waiting.append(run)
    if jobs == 1:
        for run in waiting:
            done(run, _train(run, folder))
    elif waiting:
        _in_parallel(waiting, folder, min(jobs, len(waiting)), done)
    summary = summarise(comparison, results)
    write_json(folder / "comparison.json", summary)
    return summary


def _in_parallel(waiting: list[Run], folder: Path, jobs: int, done: Callable[[Run, dict[str, Any]], None]) -> None:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # a forked child would inherit threads that PyTorch already runs
    goes_on, ours = context.Pipe(duplex=False)  # nothing is sent: that it is closed tells the children to end
    children = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_child, initargs=(threads, goes_on))
    with goes_on, ours, children as pool:
        futures: dict[Future[dict[str, Any]], Run] = {pool.submit(_train_in_child, run, folder): run for run in waiting}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException as error:
            ours.close()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted from error
            raise


_until_the_end = ExitStack()  # of a child


def _start_child(threads: int, goes_on: Connection) -> None:
    torch.set_num_threads(threads)
    interrupted = _until_the_end.enter_context(interrupts())  # also between two runs
    threading.Thread(target=_end_with_parent, args=(goes_on, interrupted), daemon=True).start()


def _end_with_parent(goes_on: Connection, interrupted: threading.Event) -> None:
    """Leave a checkpoint and end if the parent says so; a killed parent takes its children along at once.

    They would go on training in folders that the next call uses.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([goes_on, parent.sentinel])
        interrupted.set()
        parent.join()
        os._exit(1)


def _train_in_child(run: Run, folder: Path) -> dict[str, Any]:
    """`_train`, unless the child has been interrupted: the pool hands it one more run than it has children."""
    with interrupts() as interrupted:
        if interrupted.is_set():
            raise Interrupted
    return _train(run, folder)


def _train(run: Run, folder: Path) -> dict[str, Any]:
    return train(run.config, run.folder(folder), resume=True, quiet=True, data=_data(*_data_key(run.config)))


def _data_key(config: TrainConfig) -> tuple[Any, ...]:
    return config.data, config.input_column, config.label_column, config.validation, config.limit


@lru_cache(maxsize=1)
def _data(*key: Any) -> Data:
    """The data of a run, kept for the next run of this process."""
    names = ("data", "input_column", "label_column", "validation", "limit")
    return load_config_data(TrainConfig(**dict(zip(names, key, strict=True))))
