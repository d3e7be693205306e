"""Fine-tuning of several models over several seeds: never a finished run twice, an unfinished one from where it was."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.finetune.log import FinetuneLog
from fastff.hf.finetune.models import Candidate, find_models
from fastff.hf.finetune.tuning import Tuning, result_path
from fastff.runs.files import read_object, write_json
from fastff.runs.folder import claim_folder
from fastff.runs.interrupts import Interrupted, interrupts


def finetune(
    models: list[str],
    config: FinetuneConfig,
    out: str | Path,
    *,
    save_models: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune each model as a classifier with each seed, measure all side by side, and summarise.

    Called again with the same settings it goes on: finished runs are not repeated, an interrupted one continues, to the
    same weights, bit for bit on one CPU with as many threads. More models and more seeds may be added.

    Args:
        models: folders (also runs of `fastff pretrain`) and hub ids; the first is the reference of the others.
        config: everything else that the results depend on.
        out: folder of config.json, summary.json, runs/LABEL-seedK.json, and checkpoints while a run goes on.
        save_models: keep the model of each run that is finished from now on, in models/LABEL-seedK.
        quiet: print nothing.

    Returns:
        The content of summary.json: settings, versions, device, threads, classes, samples; and models, a row for each
        (see `fastff.hf.finetune.summary.summarise_models`).

    Raises:
        ValueError: data, a model or settings cannot be used, the loss is no number, or `out` holds other runs.
        Interrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    candidates, folder = find_models(models), Path(out)
    _check_folder(candidates, config, folder)
    summary = _finished(candidates, config, folder)
    if summary is not None:
        return summary
    runs = [(candidate, seed) for seed in range(config.seeds) for candidate in candidates]
    with _quiet_transformers():
        tuning = Tuning(config, folder, candidates)
        with claim_folder(config, folder), interrupts() as interrupted, FinetuneLog(len(runs), quiet) as log:
            (folder / "runs").mkdir(exist_ok=True)
            for done, (candidate, seed) in enumerate(runs):
                if not result_path(folder, candidate, seed).exists():
                    log.begin(f"{candidate.label}, seed {seed}", done)
                    tuning.train(candidate, seed, log, interrupted, save_models)
                if interrupted.is_set():
                    raise Interrupted
            log.begin("measuring inference", len(runs))
            summary = tuning.summarise(interrupted)
            write_json(folder / "summary.json", summary)
    return summary


def _check_folder(candidates: list[Candidate], config: FinetuneConfig, folder: Path) -> None:
    """ValueError if `folder` holds runs of other settings (but for the number of seeds), or of another model."""
    if not (folder / "config.json").exists():
        if (folder / "runs").exists():
            raise ValueError(f"folder {str(folder)!r} holds runs but no config.json: name another folder")
        return
    seeds = FinetuneConfig.read(folder / "config.json").seeds
    dataclasses.replace(config, seeds=seeds).check_same(folder)
    for candidate in candidates:
        for path in (result_path(folder, candidate, seed) for seed in range(config.seeds)):
            place = read_object(path).get("model") if path.exists() else candidate.place
            if place != candidate.place:
                raise ValueError(f"{path} is of the model {place!r}, got {candidate.place!r}: name another folder")


def _finished(candidates: list[Candidate], config: FinetuneConfig, folder: Path) -> dict[str, Any] | None:
    """The summary if it is of these models and settings."""
    path = folder / "summary.json"
    summary = read_object(path) if path.exists() else {}
    same = summary.get("settings") == config.to_dict()
    return summary if same and [row["label"] for row in summary["models"]] == [c.label for c in candidates] else None


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Inside, Transformers reports neither files loaded and saved nor the new classifier, which is meant to be new."""
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
