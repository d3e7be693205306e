"""A model, its tokenizer and its card in one folder, whole or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fastff.hf.model_card import write_model_card


def save_whole(
    model: PreTrainedModel, tokenizer: Any, place: Path, *, title: str, results: Mapping[str, str], **options: Any
) -> None:
    """Write the folder `place`, in the place of one that is there; it is filled beside it and renamed.

    Args:
        model, tokenizer: for `from_pretrained`.
        title, results: of the model card.
        options: of `model.save_pretrained`.
    """
    partial = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, **options)
    tokenizer.save_pretrained(partial)
    write_model_card(model, partial, title=title, results=results)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(partial, place)
