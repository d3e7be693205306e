"""What is exported: a run of `fastff train`, a model of Transformers, or any module with an example of its input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastff.runs.files import read_object

EXAMPLE = 3  # samples of an example
LONGEST = 8192  # tokens, of models that name no longest
KINDS = ("CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification", "ImageClassification")


@dataclass(frozen=True)
class Subject:
    """A module and how it is called.

    Attributes:
        model: in eval mode, with one tensor as output.
        inputs: an example of each positional input, of three samples, by name. The first dimension is the batch.
        lengths: the largest length, where inputs have one, in their second dimension; else None.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    lengths: int | None = None

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """For `torch.export.export`: of every input the batch, and the length where there is one."""
        sizes: dict[int, Any] = {0: Dim("batch", min=1, max=2**16)}
        if self.lengths is not None:
            sizes[1] = Dim("length", min=2, max=self.lengths)
        return tuple(sizes for _ in self.inputs)

    def resized(self, batch: int) -> tuple[Tensor, ...]:
        """The example with another batch, and, where there is a length, a shorter one."""
        index = torch.arange(batch) % EXAMPLE
        cut = (index,) if self.lengths is None else (index, slice(2, None))
        return tuple(t[cut] for t in self.inputs.values())


def load_subject(source: str) -> Subject:
    """Of a run or a model on disk, or a hub id.

    Args:
        source: the folder of a run of `fastff train` or `fastff pretrain`, or a model of Transformers.

    Raises:
        ValueError: there is no such model, files are damaged, or its inputs are neither texts nor images.
    """
    folder = Path(source)
    if (folder / "model" / "config.json").exists():  # of `fastff pretrain`
        return _of_transformers(str(folder / "model"))
    try:
        config = read_object(folder / "config.json") if folder.is_dir() else {"model_type": None}
    except OSError as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return _of_transformers(source) if "model_type" in config else _of_run(folder)


def _of_run(folder: Path) -> Subject:
    from fastff.train import TrainConfig
    from fastff.train.loop import load_config_data
    from fastff.train.saved import load_model

    model, data = load_model(folder, load_config_data(TrainConfig.read(folder / "config.json")))
    inputs = data.train.inputs[:EXAMPLE]
    return Subject(Classifier(model, data.mean, data.std, inputs.dtype == torch.uint8).eval(), {"inputs": inputs})


def _of_transformers(source: str) -> Subject:
    import transformers

    import fastff.hf  # noqa: F401  (registers its models)

    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except OSError as error:
        raise ValueError(
            f"source must be a run of fastff, the folder of a model or a hub id, got {source!r}: {error}"
        ) from None
    architecture = next(iter(config.architectures or []), "")
    kind = next((kind for kind in KINDS if architecture.endswith(f"For{kind}")), None)
    loader = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    model = loader.from_pretrained(source).eval()
    torch.manual_seed(0)
    if model.main_input_name == "pixel_values":
        size = (config.num_channels, config.image_size, config.image_size)
        return Subject(Outputs(model), {"pixel_values": torch.randn(EXAMPLE, *size, dtype=model.dtype)})
    if model.main_input_name != "input_ids" or config.is_encoder_decoder:
        raise ValueError(f"source must be a model of texts or images alone, got {architecture} of {source!r}")
    longest = min(getattr(config, "max_position_embeddings", None) or LONGEST, LONGEST)
    length = min(32, longest)
    ids = torch.randint(config.vocab_size, (EXAMPLE, length))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0  # as texts of different lengths are padded
    return Subject(Outputs(model), {"input_ids": ids, "attention_mask": mask}, longest)


class Classifier(nn.Module):
    """A model of `fastff train` that takes inputs as the data have them: (batch, *shape) to logits (batch, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor, bytes_: bool) -> None:
        super().__init__()
        self.model, self.largest = model, 255 if bytes_ else 1
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model((inputs.float() / self.largest - self.mean) / self.std)


class Outputs(nn.Module):
    """A model of Transformers that gives its logits alone, or its last hidden state where it has none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if getattr(model.config, "use_cache", False):
            model.config.use_cache = False  # of a whole sequence there is nothing to keep

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found = self.model(inputs) if attention_mask is None else self.model(inputs, attention_mask=attention_mask)
        return found["logits"] if "logits" in found else found["last_hidden_state"]
