"""What a model's config.json says about its feedforward layers."""

from dataclasses import dataclass
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from fastff.hf.check_layer import check_layer

METHOD = "fastff"


@dataclass(init=False, repr=False)
class FeedForwardConfig(QuantizationConfigMixin):
    """The layer that stands in place of a model's feedforward layers, as `quantization_config` of `from_pretrained`.

    Quantization methods are what Transformers lets libraries register to change a model as it is loaded.

    Args:
        layer: `name:option=value,...` as of `fastff.nn.build_layer`: "tree:depth=6,leaf_width=1,trees=8"; "tree"
            or "peer" alone stand for what was best in small decoders (docs/guides/choose.md). The activation, unless it
            says one, is that of the layers it replaces.
        modules: which ones: patterns of `fnmatch` for names of `feedforward_modules`, with or without the model's
            prefix; "model.layers.[2-5].mlp" are layers 2 to 5. None: all.
        quant_method: "fastff", by which Transformers finds this class.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or `layer` is no layer, or larger than any memory.
    """

    layer: str
    modules: list[str] | None

    def __init__(self, layer: str, modules: list[str] | None = None, quant_method: Any = METHOD) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {quant_method!r}")
        if not isinstance(layer, str):
            raise TypeError(f"layer must be a str such as 'tree:depth=4,leaf_width=1', got {layer!r}")
        if modules is not None and not (isinstance(modules, list) and all(isinstance(m, str) for m in modules)):
            raise TypeError(f"modules must be None or a list of names or patterns, got {modules!r}")
        check_layer(layer)
        self.quant_method = quant_method
        self.layer = layer
        self.modules = modules
