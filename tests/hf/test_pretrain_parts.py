"""Pretraining in parts: schedule, budget, batches, gradients, weight decay, models, errors."""

import json
import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from fastff.hf import UltraFastBertConfig, UltraFastBertForMaskedLM
from fastff.hf.pretrain import PretrainConfig
from fastff.hf.pretrain.arguments import training_arguments
from fastff.hf.pretrain.checkpoints import PROGRESS, read_progress
from fastff.hf.pretrain.data import EvaluationRows, TrainingBatches
from fastff.hf.pretrain.models import build_model
from fastff.hf.pretrain.schedule import Progress, lr_factor, step_batch
from fastff.hf.pretrain.trainer import PretrainTrainer, decayed_names
from fastff.hf.text import CausalCollator, MaskingCollator, train_tokenizer
from fastff.nn import auxiliary_loss

TINY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2"


def config(**settings) -> PretrainConfig:
    return PretrainConfig(**{"data": "text.txt", "tokens": 10_000, "length": 8, "shape": TINY} | settings)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20], 60, "wordpiece")


class Rows:
    """As a packed data set: row i begins with i."""

    def __init__(self, count: int) -> None:
        self.ids = torch.arange(count)[:, None] + torch.arange(8)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, indices) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[indices]}


def test_the_learning_rate_of_p2_and_of_the_cosine():
    p2 = {share: lr_factor(config(), share) for share in (0, 0.375, 0.75, 0.875, 1)}
    assert p2 == pytest.approx({0: 0.25, 0.375: 0.625, 0.75: 1, 0.875: 0.5, 1: 0})
    cosine = config(schedule="cosine", warmup=0.1)
    found = [lr_factor(cosine, share) for share in (0, 0.05, 0.1, 0.55, 1)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert lr_factor(config(schedule="cosine", warmup=0.0), 0) == 1


@pytest.mark.parametrize(
    ("layer", "balance"), [("tree", 0.01), ("moe:experts=4", 0.01), ("peer", 0.01), ("ultra:depth=5", 0), ("", 0)]
)
def test_what_is_not_given_depends_on_the_layer_and_the_budget(layer, balance):
    assert config(feedforward=layer).balance_weight == balance
    assert config(feedforward=layer, balance=0.3).balance_weight == 0.3
    assert [config(tokens=tokens).growth for tokens in (1_000_000, 4_000_000, 16_000_000)] == [0.4, 0.4, 0.1]
    assert config(tokens=None, minutes=1.0).growth == 0.4
    assert config(tokens=16_000_000, grow=0.0).growth == 0


def test_the_batch_grows_linearly_in_multiples_of_what_is_taken_at_once():
    c = config(start_batch=128, end_batch=8192, ramp_until=0.6)
    assert [step_batch(c, share, 32) for share in (0, 0.3, 0.6, 1)] == [128, 4160, 8192, 8192]
    assert step_batch(c, 0.1, 100) == 1500  # of 1472
    assert step_batch(c, 0, 1000) == 1000
    assert {step_batch(config(start_batch=64, end_batch=64, ramp_until=0.0), t, 32) for t in (0, 0.5, 1)} == {64}


def test_a_budget_of_tokens_is_met_to_a_part():
    p = Progress(config(tokens=3001, start_batch=8, end_batch=40), unit=4)
    batches: list[int] = []
    while p.share < 1:
        batches.append(p.begin_step())
        p.end_step(p.step_seconds())
    assert sum(batches) == p.sequences == 376  # 3001 / 8 = 375.1, so 376, a multiple of 4
    assert batches[0] == 8
    assert batches[:-1] == sorted(batches[:-1])
    assert batches[-2] == 40


def test_a_budget_of_minutes_counts_the_seconds_of_steps():
    p = Progress(config(tokens=None, minutes=2.0), unit=4)
    p.begin_step()
    p.end_step(30.0)
    assert p.share == 0.25
    p.begin_step()
    p.end_step(120.0)
    assert p.share == 1


def test_a_checkpoint_of_other_processes_or_damaged_is_refused(tmp_path):
    p = Progress(config(), unit=64)
    p.begin_step()
    p.end_step(2.0)
    path = tmp_path / PROGRESS
    path.write_text(json.dumps(p.to_dict()))
    again = Progress(config(), unit=64)
    read_progress(tmp_path, again)
    assert (again.step, again.sequences, again.seconds, again.share) == (1, p.batch, 2.0, p.share)
    with pytest.raises(ValueError, match="as many processes as before, 2, got 1"):
        read_progress(tmp_path, Progress(config(), unit=32))
    for text in ("{", "[]", '{"step": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=PROGRESS):
            read_progress(tmp_path, again)


def take(rows, count, collator=None, process=0, processes=1, progress=None):
    """Some batches, and the progress after them."""
    p = progress or Progress(config(tokens=10_000, start_batch=6, end_batch=6), unit=6)
    source = iter(TrainingBatches(rows, collator or CausalCollator(), p, process, processes))
    batches = []
    for _ in range(count):
        batches.append(next(source))
        p.end_step(0.0)
    return batches, p


def test_the_data_go_round_whole_and_each_time_in_another_order():
    batches, _ = take(Rows(9), 3)  # 18 sequences
    order = torch.cat([batch["input_ids"][:, 0] for batch in batches])
    assert order[:9].sort().values.tolist() == order[9:].sort().values.tolist() == list(range(9))
    assert order[:9].tolist() != order[9:].tolist()
    assert len(take(Rows(2), 1)[0][0]["input_ids"]) == 6  # several rounds in one step


def test_processes_share_a_step_and_draw_masks_of_their_own(tokenizer):
    (whole,), _ = take(Rows(30), 1)
    parts = [take(Rows(30), 1, process=i, processes=2)[0][0] for i in range(2)]
    together = torch.cat([part["input_ids"][:, 0] for part in parts])
    assert together.sort().values.tolist() == whole["input_ids"][:, 0].sort().values.tolist()
    mask = MaskingCollator(tokenizer, share=0.5)
    same = torch.ones(30, 8, dtype=torch.int64) * 9
    rows = Rows(30)
    rows.ids = same
    masks = [take(rows, 1, mask, process=i, processes=2)[0][0]["labels"] for i in range(2)]
    assert not torch.equal(masks[0], masks[1])


def test_a_batch_depends_on_nothing_but_its_place(tokenizer):
    mask = MaskingCollator(tokenizer)
    batches, _ = take(Rows(20), 5, mask)
    _, p = take(Rows(20), 3, mask)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    later, _ = take(Rows(20), 2, mask, progress=Progress(p.config, p.unit, p.step, p.sequences))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(batches[3:], later, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(batches[0]["labels"], batches[1]["labels"])


def test_all_evaluations_are_of_the_same_masks(tokenizer):
    sets = []
    for _ in range(2):
        torch.rand(3)
        sets.append(EvaluationRows(Rows(5), MaskingCollator(tokenizer), seed=3))
    assert torch.equal(sets[0].batch["input_ids"], sets[1].batch["input_ids"])
    assert sets[0][2].keys() == {"input_ids", "labels"}


def trained_once(tmp_path, model, batch, **settings) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of one step."""
    c = config(**settings)
    trainer = PretrainTrainer(Progress(c, unit=c.batch_size), model=model, args=training_arguments(c, tmp_path))
    model.zero_grad()
    loss = trainer.training_step(model, batch)
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def bert(feedforward="tree:depth=2,leaf_width=2") -> UltraFastBertForMaskedLM:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    shape = UltraFastBertConfig(**sizes, feedforward=feedforward, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return UltraFastBertForMaskedLM(shape)


def others() -> dict[str, tuple]:
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaConfig(**sizes, intermediate_size=8)
    plain = BertConfig(**sizes, intermediate_size=8, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return {"llama": (LlamaForCausalLM, llama, "causal"), "bert": (BertForMaskedLM, plain, "masked")}


@pytest.mark.parametrize("name", ["ultrafastbert", "bert", "llama"])
def test_a_step_in_parts_has_the_gradients_of_the_whole_batch(tmp_path, tokenizer, name):
    kind, shape, objective = others().get(name, (None, None, "masked"))
    torch.manual_seed(0)
    model = bert() if kind is None else kind(shape)
    collator = MaskingCollator(tokenizer) if objective == "masked" else CausalCollator()
    batch = collator([{"input_ids": row} for row in torch.randint(60, (12, 8))])
    whole = trained_once(tmp_path, model, batch, batch_size=12, objective=objective)
    parts = trained_once(tmp_path, model, batch, batch_size=4, objective=objective)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert model(**batch).loss.item() == pytest.approx(whole[0], rel=1e-6)
    for key, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][key], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("layer", ["tree:depth=2,leaf_width=2", "moe:experts=4,expert_width=2,top_k=1"])
def test_the_auxiliary_losses_are_learned_but_not_reported(tmp_path, tokenizer, layer):
    model = bert(layer)
    batch = MaskingCollator(tokenizer)([{"input_ids": row} for row in torch.randint(60, (8, 8))])

    def expected() -> dict[str, torch.Tensor]:
        model.zero_grad()
        for part in ({name: values[i : i + 4] for name, values in batch.items()} for i in (0, 4)):
            loss = model(**part).loss + auxiliary_loss(model, balance=0.7, importance=0.7, load=0.7)
            (loss / 2).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    torch.manual_seed(0)  # the noise of the MoE, as Trainer seeds it
    gradients = expected()
    found = trained_once(tmp_path, model, batch, batch_size=4, balance=0.7)
    without = trained_once(tmp_path, model, batch, batch_size=4, balance=0.0)
    assert found[0] == pytest.approx(without[0], rel=1e-5)
    differs = False
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-6)
        differs = differs or not torch.allclose(found[1][key], without[1][key], rtol=1e-3)
    assert differs


@pytest.mark.parametrize(
    ("layer", "decayed"),
    [
        ("tree:depth=2,leaf_width=2", {"node_weight", "node_out", "leaf_w1", "leaf_w2", "base_w1", "base_w2"}),
        ("ultra:depth=2", {"w_in", "w_out"}),
        ("fff:depth=2,leaf_width=2,master_width=2", {"node_weight", "leaf_w1", "leaf_w2", "master_w1", "master_w2"}),
        ("moe:experts=4,expert_width=2", {"gate_weight", "noise_weight", "expert_w1", "expert_w2"}),
        ("dense:width=4", {"w1", "w2"}),
    ],
)
def test_weight_decay_is_for_matrices(layer, decayed):
    names = set(decayed_names(bert(layer)))
    inside = {name.rpartition(".")[2] for name in names if ".feedforward." in name}
    assert inside == decayed
    rest = {name for name in names if ".feedforward." not in name}
    assert {name.rpartition("layers.")[2][2:] for name in rest if "layers" in name} == {
        "attention.query_key_value.weight",
        "attention.dense.weight",
    }
    assert not any("norm" in name or "bias" in name or "scale" in name for name in rest)


def test_the_optimiser_decays_only_those(tmp_path):
    model = bert()
    c = config(weight_decay=0.3)
    trainer = PretrainTrainer(Progress(c, unit=4), model=model, args=training_arguments(c, tmp_path))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        found = {names[p] for p in group["params"]}
        assert group["weight_decay"] == (0.3 if "model.layers.0.feedforward.leaf_w1" in found else 0.0)
        assert ("model.layers.0.feedforward.leaf_b1" in found) == (group["weight_decay"] == 0)


def test_models_by_name_take_their_shape_the_vocabulary_and_the_layer(tokenizer):
    model = build_model(config(feedforward="ultra:depth=3"), tokenizer)
    assert model.config.model_type == "ultrafastbert"
    assert (model.config.vocab_size, model.config.hidden_size) == (len(tokenizer), 16)
    assert model.config.feedforward == "ultra:depth=3"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert build_model(config(feedforward="none"), tokenizer).config.feedforward is None
    assert build_model(config(shape=TINY + ",layer_norm_eps=1e-3"), tokenizer).config.layer_norm_eps == 1e-3
    gpt2 = build_model(config(model="gpt2", objective="causal"), tokenizer)
    assert (gpt2.config.n_embd, gpt2.config.vocab_size) == (16, len(tokenizer))
    assert gpt2.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model": "la ma"}, "la ma"),
        ({"model": "./nowhere", "from_weights": True, "shape": ""}, "nowhere"),
        ({"model": "llama", "from_weights": True, "shape": ""}, "model type"),
        ({"shape": "hidden=3"}, "hidden=3"),
        ({"shape": "hidden_size"}, "hidden_size"),
        ({"shape": "hidden_size=wide"}, "hidden_size"),
        ({"shape": "hidden_size=15"}, "hidden_size"),
        ({"length": 1000}, "length"),
        ({"model": "llama"}, "no masked"),
        ({"model": "vit", "objective": "causal", "shape": ""}, "no causal"),
    ],
)
def test_a_model_that_cannot_be_is_named(tokenizer, settings, named):
    with pytest.raises(ValueError, match=named):
        build_model(config(**settings), tokenizer)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": ""}, "data"),
        ({"objective": "both"}, "objective"),
        ({"tokens": None}, "tokens and minutes"),
        ({"minutes": 1.0}, "tokens and minutes"),
        ({"tokens": None, "minutes": 0.0}, "minutes"),
        ({"feedforward": "forest:depth=3"}, "forest"),
        ({"feedforward": "none", "model": "llama"}, "feedforward"),
        ({"from_weights": True}, "shape"),
        ({"start_batch": 8, "end_batch": 4}, "end_batch"),
        ({"ramp_until": 1.0}, "ramp_until"),
        ({"lr": math.nan}, "lr"),
        ({"mask_share": 1.5}, "mask_share"),
        ({"precision": "int8"}, "precision"),
        ({"evaluations": 0}, "evaluations"),
        ({"balance": -1.0}, "balance"),
    ],
)
def test_a_bad_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=named):
        config(**settings)
    with pytest.raises(TypeError, match="lr"):
        config(lr="fast")
