"""The training loop: Accelerate runs it on one process or many; it can be killed at any moment and resumed."""

import json
from pathlib import Path
from typing import Any

from fastff.runs.folder import claim_folder, is_finished
from fastff.runs.interrupts import interrupts
from fastff.train.config import TrainConfig
from fastff.train.data import Data, load_data
from fastff.train.log import RunLog
from fastff.train.run import Run


def train(
    config: TrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    data: Data | None = None,
    checkpoint_seconds: float = 60.0,
) -> dict[str, Any]:
    """Train a classifier and evaluate it once on the test data, with the weights of its best validation epoch.

    Args:
        config: everything that the result depends on.
        folder: of the run: config.json, metrics.jsonl, TensorBoard events, checkpoints while it runs; at the end
            model.safetensors (the best epoch's weights) and result.json.
        resume: go on where a run in `folder` stopped, to the same weights, bit for bit on one CPU with as many threads.
            A finished run is returned as it is, an empty folder starts.
        quiet: print nothing.
        data: loaded already; None loads what `config` names.
        checkpoint_seconds: least time between two checkpoints; an interrupt leaves one at once.

    Returns:
        The content of result.json.

    Raises:
        ValueError: the data cannot be used, or `folder` holds another run, or its checkpoint is damaged.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    folder = Path(folder)
    if is_finished(config, folder, resume):
        return load_result(folder)
    run = Run(config, folder, data or load_config_data(config), checkpoint_seconds, (folder / "config.json").exists())
    log = lock = None
    if run.main:
        lock = claim_folder(config, folder)  # only now, so that settings that cannot run leave nothing behind
        log = RunLog(folder, run.progress.history, f"{config.layer} on {config.data}", quiet)
    run.accelerator.wait_for_everyone()
    try:
        with interrupts() as interrupted:
            while not run.done:
                run.train_epoch(interrupted)
                row, warning = run.evaluate_epoch()
                if log:
                    log.epoch(row, warning)
                run.checkpoint_if_due(interrupted)
    finally:
        if log and lock:
            log.close()
            lock.close()
    return run.finish()


def load_config_data(config: TrainConfig) -> Data:
    """The data that `config` names; DataError (a ValueError) if they cannot be used."""
    return load_data(
        config.data,
        input_column=config.input_column,
        label_column=config.label_column,
        validation=config.validation,
        limit=config.limit,
    )


def load_result(folder: Path) -> dict[str, Any]:
    """Read a finished run's result.json; ValueError if it is missing or damaged."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(result, dict) or not {"config", "history", "test_accuracy"} <= result.keys():
        raise ValueError(f"{path} is no result of a run")
    return result
