import json
import subprocess
import sys

import pytest

from fastff import cli, doctor


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastff", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


TRAIN = ("train", "--limit", "200", "--validation", "40", "--epochs", "2", "--layer", "fff:depth=2,leaf_width=2")


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("train", "compare", "report", "evaluate", "doctor"))


def test_train_then_evaluate_hard_and_soft(run, tmp_path):
    code, out, _ = run(*TRAIN, "--out", "a")
    assert code == 0
    assert "epoch 2" in out
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    code, out, _ = run("evaluate", "a")
    assert code == 0
    assert f"{result['test_accuracy']:.2f}" in out
    assert f"{result['test_soft_accuracy']:.2f}" in out
    code, out, _ = run(*TRAIN, "--out", "a", "--resume", "--quiet")
    assert code == 0
    assert f"test accuracy {result['test_accuracy']:.2f}" in " ".join(out.split())


def test_compare_then_report(run, tmp_path):
    arguments = ("compare", "quick", "--only", "dense 4", "--seeds", "1", "--epochs", "1", "--limit", "200")
    code, out, _ = run(*arguments, "--out", "c")
    assert code == 0
    assert "dense 4" in out
    (tmp_path / "c" / "report.html").unlink()
    assert run("report", "c")[0] == 0
    assert (tmp_path / "c" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--nope"), "--nope"),
        (("train", "--layer", "tree:depht=3"), "depht"),
        (("train", "--layer", "tree:depth=-1,leaf_width=2"), "depth must be at least 0"),
        (("train", "--layer", "tree:depth=99,leaf_width=2"), "depth must be at most 30, got 99"),
        (("train", "--epochs", "many"), "epochs"),
        (("train", "--data", "./nowhere"), "./nowhere"),
        (("compare", "quikc"), "quikc"),
        (("compare", "--data", "./nowhere"), "./nowhere"),
        (("evaluate", "nowhere"), "nowhere"),
        (("report", "nowhere"), "nowhere"),
        (("fly",), "fly"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2_and_leaves_nothing(run, tmp_path, arguments, said):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.rglob("*.json"))


def test_an_unwritable_folder(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(*TRAIN, "--out", "file/run")
    assert code == 2
    assert "file/run" in err
    code, _, err = run("compare", "quick", "--out", "file/run")
    assert code == 2
    assert "file/run" in err


def test_damaged_or_foreign_models(run, tmp_path):
    run(*TRAIN, "--out", "a", "--quiet")
    path = tmp_path / "a" / "model.safetensors"
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"", b"PK\x03\x04 no tensors"):
        path.write_bytes(bad)
        code, _, err = run("evaluate", "a")
        assert code == 2
        assert "model.safetensors" in err
    path.write_bytes(good)
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace("depth=2", "depth=3"))
    code, _, err = run("evaluate", "a")
    assert code == 2
    assert "does not fit" in err


def test_doctor_tells_versions_and_what_is_missing(run, monkeypatch):
    code, out, _ = run("doctor")
    assert code == 0
    assert "GPU operators" in out
    assert "missing" not in out
    monkeypatch.setattr(doctor, "EXTRAS", {"train": ("no-such-package",)})
    code, out, _ = run("doctor")
    assert code == 0
    assert "no-such-package: pip install 'fastff[train]'" in out


@pytest.mark.slow
def test_the_installed_command_runs():
    done = subprocess.run([sys.executable, "-m", "fastff.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
