"""Scripts in two processes on the CPU (gloo)."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SECONDS = 200
LAUNCH = ("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
DDP = ("--multi_gpu",)


def launch(script: Path, options: Sequence[str], arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `script` with `arguments` by accelerate's launcher, which takes `options`."""
    port = str(20_000 + (os.getpid() + time.time_ns()) % 20_000)
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, *options, "--main_process_port", port]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
