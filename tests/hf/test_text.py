"""Text for language models: tokenizers, files by name, blocks, their cache, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from transformers import BertConfig, PreTrainedTokenizerFast

from fastff.hf.text import blocks as module
from fastff.hf.text import load_tokenizer, pack, texts, train_tokenizer
from fastff.runs.open_data import DataError

WORDS = ["the", "quick", "brown", "fox,", "jumps", "over", "a", "lazy", "dog;", "naïve", "señor", "Λόγος", "again"]
CORPUS = [" ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(30)) for i in range(40)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 95, "wordpiece")


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, 300, "bpe")


def parquet(folder: Path, **splits: dict[str, list]) -> str:
    folder.mkdir(exist_ok=True)
    for split, columns in splits.items():
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def stream(documents: list[str], tokenizer: PreTrainedTokenizerFast, separator: int) -> list[int]:
    """The definition of what `pack` cuts."""
    return [i for text in documents for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], separator]]


def cut(ids: list[int], size: int) -> list[list[int]]:
    return [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]


def test_wordpiece_is_berts(wordpiece: PreTrainedTokenizerFast) -> None:
    assert wordpiece.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert len(wordpiece) == 95
    pair = wordpiece("The NAÏVE", "dog")
    assert set(pair) == {"input_ids", "attention_mask"}
    tokens = wordpiece.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert wordpiece.decode(pair["input_ids"], skip_special_tokens=True) == "the naive dog"
    assert wordpiece.tokenize("##a ☃") == ["[UNK]", "[UNK]", "a", "[UNK]"]  # ##a is no special token
    assert "##," not in wordpiece.get_vocab()  # punctuation is never inside a word
    assert "##a" in wordpiece.get_vocab()


def test_bpe_gives_every_text_back(bpe: PreTrainedTokenizerFast) -> None:
    assert len(bpe) == 300
    assert bpe.bos_token == bpe.eos_token == bpe.pad_token == "<|endoftext|>"
    text = " The  ☃\n\n Λόγος\t"
    assert bpe.decode(bpe(text)["input_ids"]) == text
    assert len(bpe("quick brown")["input_ids"]) < len("quick brown")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_tokenizer_comes_back_from_a_model_folder(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)  # its model type must not bring another tokenizer
    again = load_tokenizer(str(tmp_path))
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(CORPUS[0], CORPUS[1]) == tokenizer(CORPUS[0], CORPUS[1])


@pytest.mark.parametrize(
    ("corpus", "size", "kind", "message"),
    [
        (CORPUS, 150, "unigram", "kind: 'unigram'; expected 'wordpiece' or 'bpe'"),
        (CORPUS, 40, "wordpiece", "vocab_size: 40; expected at least 67 for the 32 different characters"),
        (CORPUS, 256, "bpe", "vocab_size: 256; expected at least 257 for the 256 bytes"),
        (CORPUS, 150.0, "bpe", "vocab_size: 150.0; expected an integer"),
        ([], 150, "wordpiece", "texts: no characters"),
        ([""], 300, "bpe", "texts: no characters"),
    ],
)
def test_tokenizers_that_cannot_be_trained(corpus: list[str], size: int, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(corpus, size, kind)


def test_tokenizers_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name in ("./nowhere", "a/b/c", ""):
        with pytest.raises(ValueError, match=rf"tokenizer {name!r}: no such folder"):
            load_tokenizer(name)
    with pytest.raises(ValueError, match=rf"tokenizer '{tmp_path}': no folder with a tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_chunks_keep_the_text_and_its_tokens(bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 10)
    for text in ("one two  three\n\nfour \n five\t\tsix  " * 9, "x" * 55, " " * 55, "", CORPUS[0]):
        parts = list(module.chunks(text))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 20
        if " " in text.strip():
            assert [i for part in parts for i in bpe(part)["input_ids"]] == bpe(text)["input_ids"]
    assert all(part[0].isspace() for part in list(module.chunks(CORPUS[0]))[1:])


def sources(folder: Path, documents: list[str]) -> Iterator[str]:
    """The same documents as each kind of data, in whose names' order they come."""
    yield parquet(folder / "parquet", train={"title": ["t"] * len(documents), "text": documents})
    (folder / "lines.jsonl").write_text("".join(json.dumps({"idx": 1, "body": text}) + "\n" for text in documents))
    yield str(folder / "lines.jsonl")
    (folder / "txt").mkdir()
    for index, text in enumerate(documents):
        (folder / "txt" / f"{index:02}.txt").write_text(text)
    yield str(folder / "txt")


def test_documents_of_files_and_folders(tmp_path: Path) -> None:
    documents = ["first\nline\n\nthird", *CORPUS[:3], "last\n"]
    for data in sources(tmp_path, documents):
        assert list(texts(data, "train")) == documents
    (tmp_path / "one.txt").write_text(documents[0])
    assert list(texts(str(tmp_path / "one.txt"), "train")) == documents[:1]
    assert "".join(texts(parquet(tmp_path / "long", train={"text": ["a b " * 9000]}), "train")) == "a b " * 9000


@pytest.mark.parametrize("batch", [1, 700, 2**20])
def test_blocks_are_the_text_in_order(
    tmp_path: Path,
    wordpiece: PreTrainedTokenizerFast,
    bpe: PreTrainedTokenizerFast,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BATCH", batch)
    monkeypatch.setattr(module, "_CHUNK", 50)
    monkeypatch.setattr(module, "_CHUNKS_AT_ONCE", 7)
    documents = [*CORPUS, None, "", " \n", "end"]
    real = [*CORPUS, "end"]
    data = parquet(tmp_path / "d", train={"text": documents}, validation={"text": documents[3:]})
    causal = pack(data, bpe, 16, split="train", special=False)
    assert causal["input_ids"][:] == cut(stream(real, bpe, bpe.eos_token_id), 16)
    assert causal.features["input_ids"].feature.dtype == "int32"
    masked = pack(data, wordpiece, 16, split="validation", special=True)
    inner = cut(stream(real[3:], wordpiece, 3), 14)
    assert masked["input_ids"][:] == [[2, *ids, 3] for ids in inner]
    limited = pack(data, wordpiece, 16, split="validation", special=True, limit=3)
    assert limited["input_ids"][:] == masked["input_ids"][:3]
    plain = pack(data, wordpiece, 16, split="train", special=False)
    assert plain["input_ids"][0] == stream(real, wordpiece, 3)[:16]


def test_validation_is_cut_from_train_where_there_is_none(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    data = parquet(tmp_path / "d", train={"text": CORPUS * 3}, test={"text": CORPUS[:1]})
    blocks = cut(stream(CORPUS * 3, bpe, bpe.eos_token_id), 16)
    count = len(blocks) // 100
    assert count > 1
    train, validation, test = (
        pack(data, bpe, 16, split=split, special=False)["input_ids"][:] for split in ("train", "validation", "test")
    )
    assert train == blocks[:-count]
    assert validation == blocks[-count:]
    assert test == cut(stream(CORPUS[:1], bpe, bpe.eos_token_id), 16)
    two = parquet(tmp_path / "two", train={"text": ["a" * 40]})
    assert [len(pack(two, bpe, 16, split=split, special=False)) for split in ("train", "validation")] == [1, 1]


ANOTHER_PROCESS = """
import sys
from fastff.hf.text import blocks, pack, texts, train_tokenizer
data, cache = sys.argv[1:]
tokenizer = train_tokenizer(texts(data, "train"), 95, "wordpiece")
blocks._Packer.__call__ = None  # packing again would raise
from pathlib import Path
print(len(pack(data, tokenizer, 16, split="train", special=True, cache=Path(cache))))
"""


def test_another_process_trains_the_same_tokenizer_and_reads_the_cache(tmp_path: Path) -> None:
    data = parquet(tmp_path / "d", train={"text": CORPUS})
    tokenizer = train_tokenizer(texts(data, "train"), 95, "wordpiece")
    first = pack(data, tokenizer, 16, split="train", special=True, cache=tmp_path / "cache")
    environment = os.environ | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", ANOTHER_PROCESS, data, str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(len(first))], done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_is_read_only_for_the_same_blocks(
    tmp_path: Path, wordpiece: PreTrainedTokenizerFast, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = parquet(tmp_path / "d", train={"text": CORPUS, "other": CORPUS[5:] + CORPUS[:5]})
    first = pack(data, wordpiece, 16, split="train", special=True)
    assert first.cache_files
    others = [
        pack(data, wordpiece, 17, split="train", special=True),
        pack(data, wordpiece, 16, split="train", special=False),
        pack(data, wordpiece, 16, split="train", special=True, text_column="other"),
        pack(data, bpe, 16, split="train", special=False),
        pack(data, train_tokenizer(CORPUS, 90, "wordpiece"), 16, split="train", special=True),
    ]
    assert len({part.cache_files[0]["filename"] for part in [first, *others]}) == 6
    assert all(part["input_ids"][:] != first["input_ids"][:] for part in others)
    monkeypatch.setattr(module._Packer, "__call__", lambda *_: pytest.fail("packed in spite of the cache"))
    wordpiece(CORPUS[:2], padding=True, truncation=True, max_length=5)  # leaves its state in the tokenizer
    again = pack(data, wordpiece, 16, split="train", special=True)
    assert again["input_ids"][:] == first["input_ids"][:]


def test_unusable_data_are_refused(tmp_path: Path, wordpiece: PreTrainedTokenizerFast) -> None:
    data = parquet(tmp_path / "d", train={"a": ["u"], "b": ["v"], "n": [1]}, test={"a": ["u"], "b": ["v"], "n": [1]})
    empty = datasets.Dataset.from_dict({"text": []}, datasets.Features({"text": datasets.Value("string")}))
    empty.to_parquet(tmp_path / "empty.parquet")

    def refused(message: str, name: str = data, split: str = "train", **options: str) -> None:
        with pytest.raises(DataError, match=message):
            pack(name, wordpiece, 16, split=split, special=True, **options)

    refused(r"'train': 'text', or a single column of strings, is not among its columns of strings; it has a, b, n")
    refused("text_column 'n' is not among its columns of strings", text_column="n")
    refused("no split 'dev'; its splits are train, test", split="dev")
    refused(r"split 'test', column 'b': tokens for 0 blocks of 16; expected 1 or more$", split="test", text_column="b")
    refused(r"tokens for 0 blocks of 16; expected 2 or more, as the data have no validation", text_column="a")
    refused('empty.parquet\'.* "train" corresponds to no data', name=str(tmp_path / "empty.parquet"))
    refused("no such file or folder", name=str(tmp_path / "gone.txt"))
    with pytest.raises(DataError, match="text_column 'gone'"):
        texts(data, "train", "gone")


def test_arguments_out_of_range_are_named(wordpiece: PreTrainedTokenizerFast, bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="length: 2; expected an integer of at least 3"):
        pack("d", wordpiece, 2, split="train", special=True)
    with pytest.raises(ValueError, match="limit: 0; expected an integer of at least 1"):
        pack("d", wordpiece, 16, split="train", special=True, limit=0)


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    data = parquet(tmp_path / "d", train={"text": CORPUS})
    with pytest.raises(ValueError, match="expected a CLS and a SEP token, as masked language models need"):
        pack(data, bpe, 16, split="train", special=True)
