"""Transformers' own common tests of a model, from the sources of the installed version, on UltraFastBERT.

They are not in the installed package: `make transformers-tests` fetches its source distribution and runs this file.
"""
# ruff: noqa: E402

import sys
import types
import unittest
from typing import Any, ClassVar

import torch

# The source distribution leaves out the folders below tests/. What the common tests import from them is about
# generation and export; our own tests cover export, and an encoder does not generate.
for _name, _content in (
    ("tests.exporters.test_export", {"ExportTesterMixin": type("ExportTesterMixin", (), {})}),
    ("tests.generation.test_utils", {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})}),
    ("tests.utils.test_configuration_utils", {"config_common_kwargs": {}}),
):
    _module = types.ModuleType(_name)
    _module.__dict__.update(_content)
    sys.modules[_name] = _module

from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

import fastff.hf as hf

MODEL_MAPPING_NAMES["ultrafastbert"] = "UltraFastBertModel"  # so that the tests know that it has no loss


class UltraFastBertModelTester:
    """Makes the small configurations and inputs that the mixin asks for."""

    batch_size, seq_length, num_labels = 3, 7, 3
    num_hidden_layers, num_attention_heads, hidden_size, vocab_size = 2, 4, 32, 99
    is_training = True
    base_model_class = hf.UltraFastBertModel

    def __init__(self, parent: unittest.TestCase, feedforward: str | None) -> None:
        self.parent, self.feedforward = parent, feedforward

    def get_config(self) -> hf.UltraFastBertConfig:
        return hf.UltraFastBertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            feedforward=self.feedforward,
            max_position_embeddings=64,
            classifier_hidden_size=16,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[hf.UltraFastBertConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, self.seq_length]
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": random_attention_mask(shape)}
        return self.get_config(), inputs


class UltraFastBertModelTest(ModelTesterMixin, unittest.TestCase):
    feedforward: ClassVar[str | None] = "ultra:depth=3,trees=2"
    all_model_classes = (
        hf.UltraFastBertModel,
        hf.UltraFastBertForMaskedLM,
        hf.UltraFastBertForSequenceClassification,
        hf.UltraFastBertForTokenClassification,
        hf.UltraFastBertForQuestionAnswering,
    )
    pipeline_model_mapping: ClassVar[dict[str, Any]] = {}
    model_split_percents: ClassVar[list[float]] = [0.5, 0.8, 0.9]

    def setUp(self) -> None:
        self.model_tester = UltraFastBertModelTester(self, self.feedforward)
        self.config_tester = ConfigTester(
            self, config_class=hf.UltraFastBertConfig, hidden_size=32, num_attention_heads=4
        )

    def _prepare_for_class(self, inputs: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs, model_class, return_labels=return_labels)
        shape = (self.model_tester.batch_size, self.model_tester.seq_length)
        if return_labels:
            if model_class is hf.UltraFastBertForSequenceClassification:
                inputs["labels"] = torch.zeros(shape[0], dtype=torch.long, device=torch_device)
            elif model_class is hf.UltraFastBertForQuestionAnswering:
                for name in ("start_positions", "end_positions"):
                    inputs[name] = torch.zeros(shape[0], dtype=torch.long, device=torch_device)
            elif model_class is not hf.UltraFastBertModel:
                inputs["labels"] = torch.zeros(shape, dtype=torch.long, device=torch_device)
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class UltraFastBertTreeModelTest(UltraFastBertModelTest):
    feedforward = "tree:depth=2,leaf_width=2,trees=2"


del ModelTesterMixin  # pytest would take them for tests of this file
