"""Pretraining in two processes on the CPU (gloo), by DDP and by FSDP2."""

import json
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fastff.hf.pretrain import PretrainConfig, pretrain
from processes_common import DDP, launch

KINDS = {
    "ddp": DDP,
    "fsdp2": ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
}
SCRIPT = """
import json, os, signal, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from fastff.hf.pretrain import PretrainConfig, pretrain
from fastff.hf.pretrain.run import PretrainRun
from fastff.hf.pretrain.schedule import Progress

out, kind, killed, values = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
if kind == "fsdp2":  # which Accelerate gives to accelerators alone: the processes must look like those of one
    initialise = PartialState.__init__
    def disguised(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        self.distributed_type = DistributedType.MULTI_GPU
    PartialState.__init__ = disguised
if killed:
    end = Progress.end_step
    Progress.end_step = lambda p, s: os.kill(os.getpid(), signal.SIGKILL) if p.step == killed else end(p, s)
finish = PretrainRun.finish
def checked(self):
    assert self.trainer.accelerator.num_processes == 2
    assert self.trainer.accelerator.is_fsdp2 == (kind == "fsdp2")
    return finish(self)
PretrainRun.finish = checked
pretrain(PretrainConfig(**values), out, resume=True, quiet=True)
"""


def run(folder: Path, kind: str, config: PretrainConfig, killed: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the script above in two processes; `killed` is the step at which both are."""
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    return launch(script, KINDS[kind], [str(folder), kind, str(killed), json.dumps(config.to_dict())])


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PretrainConfig:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(20)]
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(3000)))
    return PretrainConfig(
        data=str(path),
        objective="causal",
        vocab_size=300,
        length=16,
        tokens=4000,
        model="llama",
        shape="hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=24",
        feedforward="tree:depth=2,leaf_width=2",
        batch_size=4,
        start_batch=8,
        end_batch=24,
        validation=8,
        checkpoints=5,
        evaluations=2,
        balance=0.0,
        epsilon=1e-3,  # so that rounding does not decide the direction of a step
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_does_and_resume_when_killed(tmp_path, config, kind):
    out = tmp_path / "killed"
    done = run(out, kind, config, killed=7)
    assert done.returncode, "it was to be killed"
    assert str(signal.SIGKILL.value) in done.stderr
    assert list((out / "checkpoints").glob("checkpoint-*/progress.json"))
    done = run(out, kind, config)
    assert not done.returncode, done.stderr[-3000:]
    done = run(tmp_path / "whole", kind, config)
    assert not done.returncode, done.stderr[-3000:]
    resumed, whole = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole"))
    for name, values in whole.items():
        torch.testing.assert_close(resumed[name], values, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    # One process that takes as much at once sees the same sequences at each step.
    alone = PretrainConfig(**config.to_dict() | {"batch_size": 8})
    result = pretrain(alone, tmp_path / "alone", quiet=True)
    two = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert two["tokens"] == result["tokens"]
    assert two["validation_loss"] == pytest.approx(result["validation_loss"], abs=1e-3)
    for name, values in load_file(tmp_path / "alone" / "model" / "model.safetensors").items():
        torch.testing.assert_close(whole[name], values, rtol=1e-2, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    assert sum(p.numel() for p in model.parameters()) == two["parameters"]
