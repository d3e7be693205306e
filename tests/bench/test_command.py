"""`fastff bench` from the command line."""

import json
import sys

import pytest

from fastff import cli
from fastff.bench import command
from fastff.bench.check import DisagreementError

TINY = ("--in-features", "16", "--depth", "3", "--rounds", "3", "--tokens", "1,20")


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Runs `fastff bench` in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def bench(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastff", "bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return bench


def test_quick_is_the_default(bench, tmp_path):
    code, out, err = bench(*TINY)
    assert (code, err) == (0, "")
    assert "UltraFFF 1x3" in out
    assert "times dense" in out
    assert json.loads((tmp_path / "runs" / "bench" / "quick.json").read_text())["rows"]
    assert (tmp_path / "runs" / "bench" / "quick.png").stat().st_size > 1000


def test_several_suites_warm_and_cold(bench, tmp_path):
    code, out, _ = bench("training", "blocks", "--cold", "--out", "b", "--max-blocks", "2", *TINY)
    assert code == 0
    for suite in ("training", "blocks"):
        rows = json.loads((tmp_path / "b" / f"{suite}.json").read_text())["rows"]
        warm, cold = ([r["candidate"] for r in rows if r["cache"] == cache] for cache in ("warm", "cold"))
        assert warm == cold
        assert f"{suite}: " in out
        assert "20 tokens, cold" in out


def test_layers_of_ones_own_beside_the_first(bench, tmp_path):
    wide, tree = "dense:width=64", "tree:depth=3,leaf_width=2,trees=2"
    code, _, err = bench("--layer", wide, "--layer", tree, *TINY)
    assert (code, err) == (0, "")
    (written,) = (tmp_path / "runs" / "bench").glob("*.json")  # of no other suite
    rows = json.loads(written.read_text())["rows"]
    assert [(r["pass"], r["tokens"]) for r in rows[::2]] == [
        ("forward", 1),
        ("forward", 20),
        ("forward + backward", 20),
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["candidate"], first["executed"], first["ratio_to_dense"]) == (wide, 64, 1)
        assert (second["candidate"], second["width"], second["executed"]) == (tree, 46, 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("given",), "suite given needs layers"),
        (("--layer", "dens:width=3"), "layer must be one of"),
        (("--layer", "dense:width=0"), "width must be at least 1"),
        (("--layer", "dense:width=3", "--layer", "dense:width=3"), "layers must differ"),
        (("quikc",), "suite must be one of"),
        (("--tokens", "1,two"), "tokens must be whole numbers"),
        (("--tokens", "0"), "tokens must be at least 1"),
        (("--tokens", ","), "tokens must name"),
        (("--depth", "-1"), "depth must be at least 0"),
        (("--rounds", "many"), "rounds"),
        (("--threads", "0"), "threads must be at least 1"),
        (("--nope",), "--nope"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2_and_leaves_nothing(bench, tmp_path, arguments, said):
    code, _, err = bench(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder(bench, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = bench("--out", "file/bench", *TINY)
    assert code == 2
    assert "file" in err


def test_a_disagreement_ends_with_code_2_after_the_table(bench, monkeypatch):
    def refuse(candidate, *_):
        if candidate.kind == "tree":
            raise DisagreementError(f"{candidate.label}: output differs")

    monkeypatch.setattr("fastff.bench.runner.check_output", refuse)
    code, out, err = bench(*TINY)
    assert code == 2
    assert err.startswith("error: Tree d3 l1: output differs (and ")
    assert "UltraFFF 1x3" in out
    assert "left out: Tree d3 l1, 1 tokens: Tree d3 l1: output differs" in out


def test_an_interrupt_shows_and_keeps_what_was_measured(bench, monkeypatch, tmp_path):
    right = command.run

    def interrupted(suites, settings, folder, on_progress, on_result):
        def progress(text, done, all_steps):
            if "20 tokens" in text:
                raise KeyboardInterrupt
            on_progress(text, done, all_steps)

        return right(suites, settings, folder, progress, on_result)

    monkeypatch.setattr(command, "run", interrupted)
    code, out, err = bench(*TINY)
    assert code == cli.INTERRUPTED
    assert "forward, 1 token, warm" in out
    assert "what was measured" in err
    assert json.loads((tmp_path / "runs" / "bench" / "quick.json").read_text())["rows"]
