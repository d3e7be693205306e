"""The models that are compared: where they are, how they become classifiers, what they consist of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import fastff.hf
import fastff.hf.replace  # noqa: F401  # models with replaced layers are loaded by what it registers
from fastff.hf.finetune.config import FinetuneConfig
from fastff.hf.finetune.data import Task
from fastff.hf.text import load_tokenizer
from fastff.nn import FeedForwardLayer

# What configurations call the dropout of hidden values and of a classifier.
DROPOUTS = (
    *("hidden_dropout_prob", "hidden_dropout", "dropout", "resid_pdrop", "mlp_dropout"),
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout"),
)


@dataclass(frozen=True)
class Candidate:
    """One model.

    Attributes:
        label: the name of its folder.
        place: absolute path or hub id.
        pretraining_loss: on validation data, if a run of `fastff pretrain` made it.
    """

    label: str
    place: str
    pretraining_loss: float | None = None

    def load_tokenizer(self, length: int) -> Any:
        """The tokenizer; ValueError if it cannot pad, or the model reads fewer tokens than `length`."""
        tokenizer = load_tokenizer(self.place)
        if tokenizer.pad_token is None:
            raise ValueError(f"model {self.label!r} must have a tokenizer with a pad token")
        shape = self._try(AutoConfig.from_pretrained)
        longest = min(getattr(shape, "max_position_embeddings", None) or length, tokenizer.model_max_length)
        if longest < length:
            raise ValueError(f"length must be at most {longest}, what model {self.label!r} can read, got {length}")
        return tokenizer

    def load(self, task: Task, config: FinetuneConfig) -> PreTrainedModel:
        """The model with a new classifier, in float32; ValueError if anything but that has no weights in the file."""
        shape = self._try(AutoConfig.from_pretrained)
        values: dict[str, Any] = {name: config.dropout for name in DROPOUTS if hasattr(shape, name)}
        values["id2label"] = dict(enumerate(task.classes))
        values["label2id"] = {name: i for i, name in enumerate(task.classes)}
        model, info = self._try(
            AutoModelForSequenceClassification.from_pretrained,
            **values,
            problem_type="single_label_classification",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # of the classifier of another task
            output_loading_info=True,
        )
        new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        lost = sorted(k for k in new if k.startswith(f"{model.base_model_prefix}.") and "pooler" not in k)
        if lost:
            raise ValueError(f"model {self.place!r} has no weights for {len(lost)} parameters, such as {lost[0]!r}")
        return model

    def _try(self, load: Any, **values: Any) -> Any:
        try:
            return load(self.place, **values)
        except Exception as error:  # whatever Transformers, a parser or the network raises, the name can be mended
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"model {self.place!r} cannot be loaded as a sequence classifier: {first}") from error


def find_models(names: list[str]) -> list[Candidate]:
    """The models of folders, runs of `fastff pretrain` and hub ids; ValueError if two have the same label."""
    if not names:
        raise ValueError("models must be named, got none")
    found = [_find(name) for name in names]
    labels = [candidate.label for candidate in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"models must have folders of different names, got {twice!r} twice")
    return found


def _find(name: str) -> Candidate:
    path = Path(name).expanduser()
    if not path.is_dir():
        if not name.strip() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"model {name!r}: no such folder")
        return Candidate(name.rpartition("/")[2], name)
    path = path.resolve()
    run = path.parent if path.name == "model" else path
    if not (run / "model" / "config.json").exists():
        return Candidate(path.name, str(path))
    loss = None
    if (run / "result.json").exists():
        try:
            loss = json.loads((run / "result.json").read_text()).get("validation_loss")
        except (AttributeError, ValueError) as error:
            raise ValueError(f"{run / 'result.json'} cannot be read: {error}") from None
    return Candidate(run.name, str(run / "model"), loss)


def describe(candidate: Candidate, model: PreTrainedModel) -> dict[str, Any]:
    """What a model is, for the summary."""
    return {
        "label": candidate.label,
        "model": candidate.place,
        "architecture": model.config.model_type,
        "feedforward": [
            {
                "name": name,
                "layer": type(layer).__name__,
                "training_width": layer.training_width,
                "inference_width": layer.inference_width,
            }
            for name, layer in model.named_modules()
            if isinstance(layer, FeedForwardLayer)
        ],
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretraining_loss": candidate.pretraining_loss,
    }
