"""SIGKILL at random moments: the command, run again, must end as one that nobody killed, to the last bit.

python tests/torture/kill.py FOLDER --kills 20   # appends a line of JSON for each command to FOLDER/kill.jsonl
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from record import parser, record

SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TINY = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,max_position_embeddings=64"


def commands(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Arguments of each command, without --out, and the files that say how it ended."""
    text = folder / "text.txt"
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=chance.randrange(2, 7))) for _ in range(80)]
    text.write_text("\n".join(" ".join(chance.choices(words, k=30)) for _ in range(2500)))
    rows = folder / "rows.jsonl"
    rows.write_text(
        "\n".join(json.dumps({"text": " ".join(chance.choices(words, k=9)), "label": i % 2}) for i in range(300))
    )
    pretrain = [
        "pretrain",
        "--data",
        str(text),
        "--shape",
        TINY,
        "--tokens",
        "120000",
        "--length",
        "32",
        "--vocab-size",
        "200",
    ]
    pretrain += ["--batch-size", "8", "--start-batch", "8", "--end-batch", "8", "--checkpoints", "20", "--quiet"]
    tree = ["--feedforward", "tree:depth=3,leaf_width=1,trees=2"]
    finetune = ["finetune", str(folder / "pretrained"), "--data", str(rows), "--seeds", "2", "--epochs", "2"]
    finetune += ["--length", "32", "--quiet"]
    distil = ["distil", str(folder / "dense" / "model"), *pretrain[1:3], *tree, "--tokens", "60000", "--length", "32"]
    distil += ["--validation", "50", "--checkpoints", "20", "--quiet", "--resume"]
    for name, more in (("pretrained", tree), ("dense", ["--model", "bert"])):
        made = [*FASTFF, *pretrain, *more, "--resume", "--out", str(folder / name)]
        subprocess.run(made, check=True, env=os.environ | SETTINGS)
    train = [
        "train",
        "--layer",
        "tree:depth=4,leaf_width=8,gradient=sampled",
        "--lr",
        "1e-2",
        "--epochs",
        "60",
        "--quiet",
    ]
    compare = ["compare", "quick", "--only", "tree", "--seeds", "1", "--jobs", "2", "--epochs", "8"]
    return {
        "train": ([*train, "--resume"], ["model.safetensors"]),
        "compare": (compare, ["comparison.json"]),
        "pretrain": ([*pretrain, *tree, "--resume"], ["model/model.safetensors"]),
        "distil": (distil, ["model/model.safetensors"]),
        "finetune": (finetune, ["summary.json"]),
    }


FASTFF = [sys.executable, "-m", "fastff.cli"]


def ended(folder: Path, files: list[str]) -> str:
    """A digest of how a run ended; times and dates in JSON do not count."""
    digest = hashlib.sha256()
    for name in files:
        data = (folder / name).read_bytes()
        if name.endswith(".json"):
            data = json.dumps(timeless(json.loads(data)), sort_keys=True).encode()
        digest.update(data)
    return digest.hexdigest()[:16]


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "second" not in k and k not in ("date", "out", "folder")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def torture(name: str, arguments: list[str], files: list[str], kills: int, folder: Path, chance: random.Random) -> dict:
    whole, parts = folder / f"{name}-whole", folder / f"{name}-parts"
    for path in (whole, parts):
        shutil.rmtree(path, ignore_errors=True)
    environment, silent = os.environ | SETTINGS, {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    began = time.monotonic()
    subprocess.run([*FASTFF, *arguments, "--out", str(whole)], check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds, done, same, errors = time.monotonic() - began, 0, 0, []
    runs = 0
    while done < kills:
        shutil.rmtree(parts, ignore_errors=True)
        finished = False
        while not finished:
            process = subprocess.Popen(
                [*FASTFF, *arguments, "--out", str(parts)], env=environment, start_new_session=True, **silent
            )
            try:
                # Not before it has begun in earnest: half of the time goes into imports.
                _, error = process.communicate(timeout=None if done >= kills else chance.uniform(0.4, 1.1) * seconds)
                finished = True
                if process.returncode:
                    errors.append(error.decode()[-300:])
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.communicate()
                done += 1
        runs += 1
        there = all((parts / file).exists() for file in files)
        same += there and ended(parts, files) == ended(whole, files)
    return {
        "command": name,
        "kills": done,
        "runs": runs,
        "same": same,
        "errors": errors,
        "seconds_of_one": round(seconds, 1),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--only")
    arguments = options.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    amiss = False
    for name, (command, files) in commands(arguments.folder).items():
        if arguments.only in (None, name):
            row = torture(name, command, files, arguments.kills, arguments.folder, random.Random(name))
            amiss |= row["same"] < row["runs"] or bool(row["errors"])
            record(arguments.folder / "kill.jsonl", row)
    sys.exit(amiss)


if __name__ == "__main__":
    main()
