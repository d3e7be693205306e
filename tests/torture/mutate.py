"""Damaged files for every reader: each must be refused with a clear error, or load.

python tests/torture/mutate.py FOLDER --count 10000   # appends a line of JSON for each reader to FOLDER/mutate.jsonl

A process of its own reads one file after the other, so that a crash or a hang is seen. Memory above ten times the size
of the files is refused to it, and the start of another program or a connection is counted as amiss.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from record import parser, record

import fastff
import fastff.hf
from fastff.train import TrainConfig, train
from fastff.train.loop import load_config_data
from fastff.train.saved import load_model

HANG = 30  # seconds
SLACK = 512 * 2**20  # bytes that a reader may need whatever the file
Reader = Callable[[Path], object]


def damage(data: bytes, chance: random.Random) -> bytes:
    """A file as disks, downloads and people leave it behind."""
    kind = chance.randrange(7)
    at = chance.randrange(len(data))
    if kind == 0:  # cut
        return data[:at]
    if kind == 1:  # one bit
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 2:  # some bytes, of which most in the header
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 20)):
            changed[chance.randrange(min(len(data), chance.choice([64, 2000, len(data)])))] = chance.randrange(256)
        return bytes(changed)
    if kind == 3:  # a hole
        return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]
    if kind == 4:  # a part twice
        return data[:at] + data[max(0, at - 100) :]
    if kind == 5:  # a number that is another one
        digits = [i for i, byte in enumerate(data[:4000]) if 48 <= byte <= 57]
        if not digits:
            return b""
        i = chance.choice(digits)
        return data[:i] + str(chance.choice([0, -1, 10**9, 2**63, 10**30])).encode() + data[i + 1 :]
    return data[:at] + chance.randbytes(chance.randrange(1, 200)) + data[at:]


def targets(folder: Path) -> dict[str, tuple[Path, list[str], Reader]]:
    """Of each reader the intact files, those that are damaged, and what reads them; made in `folder`."""
    fff = fastff.FFF(8, 4, depth=2, leaf_width=3)
    state = {
        "node_weights": fff.node_weight.detach(),
        "node_biases": fff.node_bias.detach().unsqueeze(-1),
        "w1s": fff.leaf_w1.detach().mT.contiguous(),
        "b1s": fff.leaf_b1.detach(),
        "w2s": fff.leaf_w2.detach(),
        "b2s": fff.leaf_b2.detach(),
    }
    (folder / "authors").mkdir(parents=True)
    torch.save(state, folder / "authors" / "layer.pt")
    fastff.load_fastfeedforward(folder / "authors" / "layer.pt")

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    bert = fastff.hf.UltraFastBertForMaskedLM(fastff.hf.UltraFastBertConfig(feedforward="ultra:depth=2", **small))
    bert.save_pretrained(folder / "bert")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=48, **small))
    fastff.hf.replace_feedforward(llama, "tree:depth=2,leaf_width=1,trees=2").save_pretrained(folder / "replaced")

    config = TrainConfig(layer="tree:depth=2,leaf_width=2", epochs=1, limit=120)
    train(config, folder / "run", quiet=True)
    data = load_config_data(config)
    checkpointed(folder / "resumed")
    found = {
        "load_fastfeedforward": (
            folder / "authors",
            ["layer.pt"],
            lambda f: fastff.load_fastfeedforward(f / "layer.pt"),
        ),
        "UltraFastBERT": (folder / "bert", ["config.json", "model.safetensors"], masked),
        "replaced model": (folder / "replaced", ["config.json", "model.safetensors"], causal),
        "fastff evaluate": (folder / "run", ["config.json", "model.safetensors"], lambda f: load_model(f, data)),
        "--resume": (folder / "resumed", ["config.json", *latest(folder / "resumed")], resume),
    }
    reference = Path(__file__).parents[3] / "shared" / "data" / "reference" / "ultrafastbert_2x3"
    if reference.is_dir():  # a checkpoint that the authors' code wrote
        shutil.copytree(reference, folder / "crammed", copy_function=shutil.copyfile)
        found["the authors' UltraFastBERT"] = (folder / "crammed", ["config.json", "model.safetensors"], masked)
    return found


def masked(folder: Path) -> object:
    return transformers.AutoModelForMaskedLM.from_pretrained(folder)


def causal(folder: Path) -> object:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def checkpointed(folder: Path) -> None:
    """A run that stopped after its first epoch."""
    from fastff.train.run import Run

    step, steps = Run._step, 0

    def stop(self: Run, batch: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    Run._step = stop
    try:
        train(TrainConfig(layer="tree:depth=2,leaf_width=2", epochs=2, limit=120, batch_size=32), folder, quiet=True)
    except fastff.train.Interrupted:
        pass
    finally:
        Run._step = step


def latest(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "checkpoints" in p.parts][:8]


def resume(folder: Path) -> object:
    config = TrainConfig.read(folder / "config.json")
    if (
        config.epochs > 2 or (config.limit or 9999) > 120
    ):  # a number that is another one: a run that is as long as it says
        raise ValueError("a longer run")
    return train(config, folder, quiet=True, resume=True)


def read_all(name: str, intact: Path, files: list[str], read: Reader, seeds: range, out: int) -> None:
    """In a child: read damaged copies, and write a line to `out` before and after each."""
    amiss: list[str] = []
    harmful = ("os.system", "subprocess.Popen", "socket.connect", "os.exec", "os.posix_spawn")
    sys.addaudithook(lambda event, _: amiss.append(event) if event in harmful else None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    size = sum((intact / file).stat().st_size for file in files)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + SLACK + 10 * size, -1))
    copy = intact.parent / f"copy-{os.getpid()}"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for seed in seeds:
        chance = random.Random(f"{name} {seed}")
        file = chance.choice(files)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(intact, copy)
        (copy / file).write_bytes(damage((intact / file).read_bytes(), chance))
        os.write(out, f"{seed}\n".encode())
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(HANG)
        try:
            read(copy)
            end = "loaded"
        except (ValueError, OSError, TypeError) as error:
            end = f"refused {type(error).__name__}" if str(error) else "amiss: an error without words"
        except Exception as error:
            # Transformers builds as many layers of its own as a file says, until time or memory, of which a MemoryError
            # says no word, end it.
            theirs = raised_by(error) in ("transformers", "huggingface_hub")
            said = f"{type(error).__name__} {str(error).splitlines()[:1]}"
            clear = str(error) or isinstance(error, MemoryError)
            end = f"refused by Transformers: {said}" if theirs and clear else f"amiss: {said}"
        signal.alarm(0)
        if amiss:
            end = f"amiss: {amiss.pop()}"
        os.write(out, f"{json.dumps([file, end])}\n".encode())
    shutil.rmtree(copy, ignore_errors=True)


class TooLongError(Exception):
    """Reading takes longer than it may."""


def too_long(*_: object) -> None:
    """Say where it is, and if it does not listen, end it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(HANG)
    raise TooLongError(f"longer than {HANG} seconds")


def raised_by(error: Exception) -> str:
    """Which library of ours or of Hugging Face's asked for what failed: the innermost that is in the traceback."""
    packages = ("fastff", "transformers", "huggingface_hub")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for package in packages:
            if f"{os.sep}{package}{os.sep}" in frame.filename:
                return package
    return ""


def torture(name: str, intact: Path, files: list[str], read: Reader, count: int) -> dict:
    """All seeds, in as many children as it takes."""
    ends, examples, began, seed = Counter(), {}, time.monotonic(), 0
    while seed < count:
        source, out = os.pipe()
        child = os.fork()
        if not child:
            try:
                read_all(name, intact, files, read, range(seed, count), out)
            finally:
                os._exit(0)
        os.close(out)
        lines = os.fdopen(source)
        for line in lines:
            seed = int(line)
            file, end = json.loads(next(lines, None) or '["?", ""]')
            if end:
                ends[end.split(" [")[0]] += 1
                seed += 1
                if "amiss" in end:
                    examples.setdefault(end, f"seed {seed - 1}, {file}")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            how = "hung" if os.WTERMSIG(status) == signal.SIGALRM else f"crashed by signal {os.WTERMSIG(status)}"
            ends[f"amiss: {how}"] += 1
            examples.setdefault(f"amiss: {how}", f"seed {seed}")
            seed += 1
    return {
        "reader": name,
        "files": count,
        "ends": dict(ends),
        "amiss": sum(n for end, n in ends.items() if end.startswith("amiss")),
        "examples": examples,
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--only", help="name of one reader")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    files = arguments.folder / "files"
    shutil.rmtree(files, ignore_errors=True)
    amiss = 0
    for name, (intact, damaged, read) in targets(files).items():
        if arguments.only in (None, name):
            row = torture(name, intact, damaged, read, arguments.count)
            amiss += row["amiss"]
            record(arguments.folder / "mutate.jsonl", row)
    sys.exit(amiss > 0)


if __name__ == "__main__":
    main()
