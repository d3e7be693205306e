"""The README.md of a saved model: what its feedforward layers are, what of them runs, and how to load it."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from fastff.nn import FeedForwardLayer
from fastff.runs.files import write_atomically

_CARD = """---
library_name: transformers
tags:
- fastff
- fast-feedforward
---

# {title}

A `{kind}` whose feedforward layers are those of fastff (fast feedforward networks,
[arXiv 2308.14711](https://arxiv.org/abs/2308.14711), [arXiv 2311.10770](https://arxiv.org/abs/2311.10770)): {summary}

| | |
|---|---|
{facts}

## Use
```python
import fastff.hf  # registers the architecture with Transformers
from transformers import {auto}

model = {auto}.from_pretrained("{title}")
```
"""
_AUTO = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


def model_card(model: PreTrainedModel, title: str, results: Mapping[str, str] | None = None) -> str:
    """The card as Markdown.

    Args:
        model: with or without layers of fastff.
        title: the model's name.
        results: figures to show, by name.
    """
    kind = type(model).__name__
    layers = [module for module in model.modules() if isinstance(module, FeedForwardLayer)]
    have, run = (sum(getattr(layer, f"{phase}_width") for layer in layers) for phase in ("training", "inference"))
    facts = {"parameters": f"{sum(p.numel() for p in model.parameters()):,}", "feedforward layers": str(len(layers))}
    for layer in {str(layer): layer for layer in layers}.values():
        text = f"{layer.training_width:,} neurons, of which a token runs {layer.inference_width:,}"
        facts[f"`{type(layer).__name__}({layer.extra_repr()})`"] = text
    facts |= results or {}
    return _CARD.format(
        title=title,
        kind=kind,
        summary=f"a token runs {run:,} of their {have:,} neurons." if layers else "it has none.",
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        auto=next((auto for suffix, auto in _AUTO.items() if kind.endswith(suffix)), "AutoModel"),
    )


def write_model_card(
    model: PreTrainedModel, folder: str | Path, *, title: str | None = None, results: Mapping[str, str] | None = None
) -> None:
    """Write the card of `model` to README.md in `folder`, over one that is there.

    Args:
        model, results: as of `model_card`.
        title: the model's name; by default that of the folder.
    """
    folder = Path(folder)
    card = model_card(model, title or folder.resolve().name, results)
    write_atomically(folder / "README.md", lambda path: path.write_text(card))
