"""Long use, large layers, full disks: memory must stay flat, results right, and nothing on disk be lost.

python tests/torture/endure.py FOLDER --calls 1000000   # appends a line of JSON for each to FOLDER/endure.jsonl
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from record import parser, record

import fastff
from fastff.ops import use_backend

THREADS = 4


def resident() -> float:
    """Memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


@torch.inference_mode()
def many_calls(calls: int) -> dict:
    """Of one layer, from several threads at once: the same bits every time, and no more memory at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [
        fastff.TreeFeedForward(64, depth=5, leaf_width=2, trees=2),
        fastff.TreeFeedForward(64, depth=5, leaf_width=2),
    ]
    fastff.quantize(layers[1].eval())
    x = torch.randn(3, 64)
    expected, wrong, seen = [layer.eval()(x) for layer in layers], 0, []

    def run(first: int) -> None:
        nonlocal wrong
        for i in range(calls // THREADS):
            layer = (first + i) % 2
            if not torch.equal(layers[layer](x), expected[layer]):
                wrong += 1
            if first == 0 and i % max(1, calls // THREADS // 10) == 0:
                seen.append(round(resident(), 1))

    began = time.monotonic()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grown = resident() - seen[1]
    return {
        "what": f"{calls} calls from {THREADS} threads",
        "wrong": wrong,
        "resident_MB": seen,
        "grown_MB": round(grown, 1),
        "seconds": round(time.monotonic() - began),
        "amiss": wrong > 0 or grown > 5,
    }


@torch.inference_mode()
def large_layer() -> dict:
    """2^20 leaves, more than 2^31 bytes of weights, against the reference."""
    torch.manual_seed(0)
    layer = fastff.UltraFFF(272, 272, depth=19).eval()
    size = sum(p.numel() * p.element_size() for p in layer.parameters())
    x = torch.randn(300, 272)
    found = layer(x)
    with use_backend("reference"):
        expected = layer(x)
    difference = (found - expected).abs().max().item()
    return {
        "what": f"{layer.training_width} neurons, {size} bytes",
        "difference": difference,
        "amiss": size <= 2**31 or layer.training_width < 2**20 - 1 or difference > 1e-4,
    }


TRAIN = ["train", "--layer", "tree:depth=4,leaf_width=8", "--quiet", "--resume"]
MODEL = "model.safetensors"
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["fastff", *sys.argv[2:]]
from fastff.cli import main
main()
"""


def full_disk(folder: Path) -> dict:
    """A write that fails midway ends in one line, and with room again the run ends as one that had it all the time."""
    command = [*TRAIN, "--epochs", "6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, parts = folder / "whole", folder / "parts"
    subprocess.run([sys.executable, "-c", FULL, str(2**40), *command, "--out", whole], check=True, env=environment)
    sizes = [200, 2_000, 20_000, 60_000, 100_000, 200_000]  # bytes that a file may have
    said = []
    for size in sizes:
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(size), *command, "--out", parts],
            env=environment,
            capture_output=True,
            text=True,
        )
        said.append(done.stderr.strip().splitlines()[-1] if done.returncode else "ended")
    last = subprocess.run(
        [sys.executable, "-c", FULL, str(2**40), *command, "--out", parts], env=environment, check=False
    )
    same = (whole / MODEL).read_bytes() == (parts / MODEL).read_bytes()
    clear = all(line == "ended" or line.startswith("error: ") for line in said)
    return {
        "what": "files that cannot grow",
        "said": said,
        "same": same,
        "amiss": not (same and clear and last.returncode == 0),
    }


def unwritable(folder: Path) -> dict:
    """A file lies where a folder would have to be made."""
    (folder / "taken").write_text("")
    command = [
        sys.executable,
        "-m",
        "fastff.cli",
        "train",
        "--epochs",
        "1",
        "--quiet",
        "--out",
        str(folder / "taken" / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return {"what": "a folder that cannot be", "said": line, "amiss": done.returncode != 2 or "error: " not in line}


def filling_disk(folder: Path) -> dict:
    """A disk that fills up while a run goes on; with room again it ends as `full_disk`'s. Needs the right to mount."""
    place, command = folder / "mounted", [sys.executable, "-m", "fastff.cli", *TRAIN, "--epochs", "200", "--out"]
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False).returncode:
        return {"what": "a disk that fills up", "said": "mounting is not allowed here", "amiss": False}
    try:
        process = subprocess.Popen([*command, str(place / "run")], stderr=subprocess.PIPE, text=True)
        while not (place / "run" / "model.safetensors").exists() and process.poll() is None:
            time.sleep(0.02)
        subprocess.run(["dd", "if=/dev/zero", f"of={place / 'filler'}"], check=False, capture_output=True)
        line = (process.communicate()[1].strip().splitlines() or [""])[-1]
        failed = process.returncode == 2 and line.startswith("error: ")
        (place / "filler").unlink()
        subprocess.run([*command, str(place / "run")], check=True)
        subprocess.run([*command, str(folder / "unhindered")], check=True)
        same = (place / "run" / MODEL).read_bytes() == (folder / "unhindered" / MODEL).read_bytes()
        return {"what": "a disk that fills up", "said": line, "same": same, "amiss": not (failed and same)}
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--calls", type=int, default=1_000_000)
    arguments = options.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    amiss = False
    tests = [
        lambda: full_disk(arguments.folder),
        lambda: unwritable(arguments.folder),
        lambda: filling_disk(arguments.folder),
        large_layer,
        lambda: many_calls(arguments.calls),
    ]
    for test in tests:
        row = test()
        amiss |= row["amiss"]
        record(arguments.folder / "endure.jsonl", row)
    sys.exit(amiss)


if __name__ == "__main__":
    main()
