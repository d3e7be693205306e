"""UltraFastBERT as a model of Transformers: what people do with one, with every feedforward layer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import fastff
from fastff import hf
from fastff.hf.text import train_tokenizer
from fastff.hf.ultra_fast_bert.modeling import sinusoids
from fastff.nn import RoutedLayer

VOCABULARY = 64
FEEDFORWARD = [
    None,
    "ultra:depth=2,trees=3",
    "tree:depth=2,leaf_width=2",
    "dense:width=20",
    "moe:experts=4,expert_width=3",
    "fff:depth=2,leaf_width=2",
]
HEADS = [
    hf.UltraFastBertModel,
    hf.UltraFastBertForMaskedLM,
    hf.UltraFastBertForSequenceClassification,
    hf.UltraFastBertForTokenClassification,
    hf.UltraFastBertForQuestionAnswering,
]


def config(feedforward: str | None = FEEDFORWARD[1], **values: Any) -> hf.UltraFastBertConfig:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    values = shape | {"max_position_embeddings": 32, "classifier_hidden_size": 16} | values
    return hf.UltraFastBertConfig(feedforward=feedforward, **values)


def make(cls: Any = hf.UltraFastBertForMaskedLM, feedforward: str | None = FEEDFORWARD[1], **values: Any) -> Any:
    model = cls(config(feedforward, **values)).eval()
    with torch.no_grad():  # large enough for a mistake to show, and no parameter at 0
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, VOCABULARY, (3, 9))


@pytest.mark.parametrize("feedforward", FEEDFORWARD)
def test_saved_and_loaded_it_is_the_same(feedforward: str | None, ids: Tensor, tmp_path: Path) -> None:
    model = make(feedforward=feedforward)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(loaded) is hf.UltraFastBertForMaskedLM
    assert loaded.config.feedforward == feedforward
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("feedforward", [None, "ultra:depth=2,trees=3", "dense:width=20"])
def test_without_feedforward_layers_they_are_left_out(feedforward: str | None) -> None:
    names = {name.split(".")[3] for name, _ in make(feedforward=feedforward).named_parameters() if "layers.0" in name}
    assert ("feedforward" in names) == (feedforward is not None)
    assert ("feedforward_norm" in names) == (feedforward is not None)


def test_the_base_shape_is_that_of_the_paper() -> None:
    with torch.device("meta"):
        model = hf.UltraFastBertForMaskedLM(hf.UltraFastBertConfig())
    layers = [module for module in model.modules() if isinstance(module, fastff.UltraFFF)]
    assert [(layer.training_width, layer.inference_width) for layer in layers] == [(4095, 12)] * 16
    without_trees = 32768 * 768 + 1 + 16 * (4 * 768**2 + 4 * 768) + 4 * 768
    assert sum(p.numel() for p in model.parameters()) == without_trees + 16 * 4095 * (2 * 768 + 1)


def test_it_is_the_formula_of_the_paper(ids: Tensor) -> None:
    """Pre-norm attention and feedforward, scaled sinusoids, norms after the embedding and at the end, in plain code."""
    model = make(feedforward="dense:width=20")
    w = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.layer_norm(x, (32,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    place, feature = torch.arange(9.0)[:, None], torch.arange(16.0)
    angle = place / 10000 ** (2 * feature / 32)
    positions = torch.zeros(9, 32)
    positions[:, 0::2], positions[:, 1::2] = angle.sin(), angle.cos()
    x = w["model.embeddings.word_embeddings.weight"][ids] + w["model.embeddings.position_scale"] * positions
    x = norm(x, "model.embeddings.norm")
    for i in range(2):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.attention_norm") @ w[f"{layer}.attention.query_key_value.weight"].T
        q, k, v = h.view(3, 9, 4, 3, 8).permute(3, 0, 2, 1, 4)
        a = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
        x = x + a.transpose(1, 2).reshape(3, 9, 32) @ w[f"{layer}.attention.dense.weight"].T
        f = {name: w[f"{layer}.feedforward.{name}"] for name in ("w1", "b1", "w2", "b2")}
        h = torch.nn.functional.gelu(norm(x, f"{layer}.feedforward_norm") @ f["w1"].T + f["b1"])
        x = x + h @ f["w2"] + f["b2"]
    logits = norm(x, "model.final_norm") @ w["model.embeddings.word_embeddings.weight"].T
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_changes_nothing_for_real_tokens(implementation: str, ids: Tensor) -> None:
    model = make(hf.UltraFastBertModel, attn_implementation=implementation)
    alone = model(ids).last_hidden_state
    padded = torch.cat([ids, torch.randint(1, VOCABULARY, (3, 5))], dim=1)
    mask = (torch.arange(14) < 9).long().expand(3, -1)
    with_padding = model(padded, attention_mask=mask).last_hidden_state[:, :9]
    torch.testing.assert_close(with_padding, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(padded).last_hidden_state[:, :9], alone, atol=1e-3)


def test_pooling_by_mean_leaves_padding_out(ids: Tensor) -> None:
    model = make(hf.UltraFastBertForSequenceClassification, classifier_pooling="mean")
    padded, mask = torch.cat([ids, ids], 1), (torch.arange(18) < 9).long().expand(3, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_positions_count(ids: Tensor) -> None:
    model = make(hf.UltraFastBertModel)
    backwards = torch.arange(8, -1, -1).expand(3, -1)
    flipped = model(ids.flip(1), position_ids=backwards).last_hidden_state.flip(1)
    torch.testing.assert_close(flipped, model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(ids.flip(1)).last_hidden_state.flip(1), flipped, atol=1e-3)
    assert sinusoids(5, 6).shape == (5, 6)


def test_only_labelled_positions_are_predicted(ids: Tensor) -> None:
    labels = torch.where(torch.rand(ids.shape) < 0.4, ids, -100)
    sparse = make()
    full = hf.UltraFastBertForMaskedLM(config(sparse_prediction=False)).eval()
    full.load_state_dict(sparse.state_dict())
    some, every = sparse(ids, labels=labels), full(ids, labels=labels)
    assert some.logits.shape == ((labels != -100).sum(), VOCABULARY)
    assert every.logits.shape == (3, 9, VOCABULARY)
    torch.testing.assert_close(some.logits, every.logits[labels != -100])
    torch.testing.assert_close(some.loss, every.loss)


@pytest.mark.parametrize("cls", HEADS[1:])
@pytest.mark.parametrize("feedforward", FEEDFORWARD[1:3])
def test_every_head_learns(cls: Any, feedforward: str, ids: Tensor) -> None:
    model = make(cls, feedforward, num_labels=3).train()
    labels = {
        hf.UltraFastBertForSequenceClassification: {"labels": torch.tensor([0, 1, 2])},
        hf.UltraFastBertForQuestionAnswering: {
            "start_positions": torch.tensor([0, 1, 2]),
            "end_positions": ids[:, 0] % 9,
        },
    }.get(cls, {"labels": ids % 3 if cls is hf.UltraFastBertForTokenClassification else ids})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(ids, **labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("feedforward", FEEDFORWARD[:3])
def test_gradient_checkpointing_changes_no_gradient(feedforward: str | None, ids: Tensor) -> None:
    model = make(feedforward=feedforward, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # for the auxiliary loss
        model.zero_grad()
        loss = model(ids, labels=ids).loss + fastff.auxiliary_loss(model, balance=0.1)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, ids: Tensor, tmp_path: Path) -> None:
    model = make(feedforward="dense:width=20")  # a tree may turn elsewhere at a logit near 0
    model.save_pretrained(tmp_path)
    low = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in low.parameters()} == {dtype}
    torch.testing.assert_close(low(ids).logits.float(), model(ids).logits, rtol=0.1, atol=0.1)
    tree = make().to(dtype)
    assert tree(ids).logits.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(make()(ids, labels=ids).loss)


def test_hidden_states_and_attentions(ids: Tensor) -> None:
    model = make(hf.UltraFastBertModel, attn_implementation="eager")
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 9, 32)] * 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 4, 9, 9)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(3, 4, 9))
    embedded = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).last_hidden_state, outputs.last_hidden_state)


def test_resized_embeddings_stay_tied(ids: Tensor) -> None:
    model = make()
    before = model(ids).logits
    model.resize_token_embeddings(VOCABULARY + 5)
    assert model.decoder.weight is model.model.embeddings.word_embeddings.weight
    after = model(ids).logits
    assert after.shape[-1] == VOCABULARY + 5
    assert torch.equal(after[..., :VOCABULARY], before)


@pytest.mark.parametrize("feedforward", [None, "ultra:depth=2,trees=3", "tree:depth=2,leaf_width=2"])
def test_compiled_in_one_graph(feedforward: str | None, ids: Tensor) -> None:
    model = make(hf.UltraFastBertModel, feedforward)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids).last_hidden_state, model(ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_exported(ids: Tensor) -> None:
    model = make()
    dimensions = {"input_ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=32)}}
    program = torch.export.export(model, (), {"input_ids": ids}, dynamic_shapes=dimensions)
    other = torch.randint(1, VOCABULARY, (5, 13))
    torch.testing.assert_close(program.module()(input_ids=other).logits, model(other).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("more", ["", ",standardise=true"])
def test_merged_base_is_saved_without_it(more: str, ids: Tensor, tmp_path: Path) -> None:
    model = make(feedforward="tree:depth=2,leaf_width=2" + more)
    model.train()(ids)
    expected, size = model.eval()(ids).logits, model.num_parameters()
    fastff.merge_base(model)
    model.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.num_parameters() == model.num_parameters() < size
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForMaskedLM.from_pretrained(tmp_path / "again")(ids).logits, loaded(ids).logits)


def test_a_model_card_is_written_and_none_overwritten(tmp_path: Path) -> None:
    model = make(feedforward="ultra:depth=2,trees=3")
    model.save_pretrained(tmp_path / "small-bert")
    card = (tmp_path / "small-bert" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# small-bert" in card
    assert "a token runs 18 of their 42 neurons" in card
    assert 'AutoModelForMaskedLM.from_pretrained("small-bert")' in card
    assert f"| parameters | {model.num_parameters():,} |" in card
    (tmp_path / "small-bert" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "small-bert")
    assert (tmp_path / "small-bert" / "README.md").read_text() == "mine"


def test_device_map_and_shards(ids: Tensor, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert torch.equal(copy.deepcopy(loaded)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        (AutoModel, HEADS[0]),
        (AutoModelForMaskedLM, HEADS[1]),
        (AutoModelForSequenceClassification, HEADS[2]),
        (AutoModelForTokenClassification, HEADS[3]),
        (AutoModelForQuestionAnswering, HEADS[4]),
    ],
)
def test_auto_classes_know_every_head(auto: Any, cls: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)) is cls
    assert type(auto.from_config(config())) is cls


def test_initial_weights() -> None:
    """normal(0, 0.02), biases 0 (the layers' own uniform ones do not stay), offsets from the base of leaves at 0."""
    model = hf.UltraFastBertForMaskedLM(config("tree:depth=4,leaf_width=4,trees=4", hidden_size=128))
    tree = model.model.layers[0].feedforward
    for name in ("node_weight", "node_out", "base_w1", "base_w2"):
        assert getattr(tree, name).std().item() == pytest.approx(0.02, rel=0.1), name
    for name in ("node_bias", "base_b1", "base_b2", "leaf_w1", "leaf_w2"):
        assert not getattr(tree, name).any(), name
    assert model.model.layers[0].attention.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.model.embeddings.position_scale.item() == pytest.approx(128**-0.5)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 20, 60, "wordpiece")


def test_fill_mask_pipeline(tokenizer: Any, tmp_path: Path) -> None:
    model = make(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    best = pipeline("fill-mask", model=str(tmp_path), top_k=2)("the cat [MASK] on the mat")
    inputs = tokenizer("the cat [MASK] on the mat", return_tensors="pt")
    masked = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    expected = model(**inputs).logits[0, masked].softmax(-1).topk(2)
    assert [guess["token"] for guess in best] == expected.indices.tolist()
    assert [guess["score"] for guess in best] == pytest.approx(expected.values.tolist(), rel=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trainer(ids: Tensor, tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    trainer = Trainer(make(), TrainingArguments(str(tmp_path), **arguments), train_dataset=data)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_trainer_watches_the_routing_and_adds_the_auxiliary_losses(ids: Tensor, tmp_path: Path) -> None:
    model = make(feedforward="tree:depth=3,leaf_width=1", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.feedforward.node_bias.fill_(-100)  # every token goes left: collapsed
    data = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, learning_rate=0.0)
    watch = hf.RoutingCallback()
    trainer = hf.AuxiliaryLossTrainer(
        0.5, model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=[watch]
    )
    with pytest.warns(UserWarning, match=r"'model\.layers\.0\.feedforward' has collapsed"):
        trainer.evaluate()
    assert watch.routing["model.layers.1.feedforward"]["effective_leaves"] == pytest.approx(1)
    assert trainer.state.log_history[-1]["routing"] == watch.routing
    model.train()
    trainer.current_gradient_accumulation_steps = 1  # which `train` sets
    inputs = {"input_ids": ids, "labels": ids}
    with_auxiliary = trainer.compute_loss(model, inputs)
    plain = model(**inputs).loss
    assert (with_auxiliary - plain).item() == pytest.approx(0.5 * fastff.auxiliary_loss(model, balance=1.0).item())
    assert trainer.training_step(model, inputs).item() == pytest.approx(plain.item(), rel=1e-5)  # what is logged


def test_every_routed_layer_tells_its_routing(ids: Tensor) -> None:
    model = make(feedforward="tree:depth=2,leaf_width=2")
    model(ids)
    assert [m.routing.leaf.shape for m in model.modules() if isinstance(m, RoutedLayer)] == [(27, 1)] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feedforward": "oak:depth=3"}, "layer must be one of"),
        ({"feedforward": "ultra:depth=99"}, "depth of at most 32"),
        ({"feedforward": "ultra"}, "depth"),
        ({"hidden_act": "gelu_new"}, "hidden_act must be one of"),
        ({"hidden_size": 30}, "hidden_size must be a multiple of num_attention_heads, 4, got 30"),
        ({"hidden_size": 15, "num_attention_heads": 5}, "hidden_size must be even"),
        ({"vocab_size": 0}, "vocab_size must be 1 to"),
        ({"hidden_size": 10**9}, "hidden_size must be 1 to 65536, got 1000000000"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers must be 0 to 1024"),
        ({"pad_token_id": 10**6}, "pad_token_id must be 0 to vocab_size - 1 = "),
        ({"classifier_pooling": "last"}, "classifier_pooling"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
    ],
)
def test_a_wrong_shape_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        config(**values)


def test_wrong_inputs_are_refused(ids: Tensor) -> None:
    model = make()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="max_position_embeddings = 32 tokens a sequence, got 33"):
        model(torch.ones(1, 33, dtype=torch.long))
