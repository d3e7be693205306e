"""The compiled operators in a process: threads, fork, interrupts, memory."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastff.nn import MoE, TreeFeedForward, UltraFFF
from fastff.ops import instruction_set

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")

PROCESS = Path("/proc/self")
asks_for_memory = pytest.mark.skipif(not (PROCESS / "statm").exists(), reason="asks Linux for the memory in use")
asks_for_threads = pytest.mark.skipif(not (PROCESS / "task").exists(), reason="asks Linux for the threads in use")


def script(text: str, timeout: int = 60) -> str:
    """Runs Python with what all scripts need, and returns what it prints."""
    run = subprocess.run([sys.executable, "-c", COMMON + text], capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, f"{run.returncode}: {run.stdout} {run.stderr[-3000:]}"
    return run.stdout


COMMON = """
import os, signal, sys, threading, time, torch
from fastff.nn import MoE, TreeFeedForward, UltraFFF
from fastff.ops import indexed_feedforward
torch.set_num_threads(2)
torch.manual_seed(0)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def peak():
    # Not ru_maxrss, which a process inherits from the one that starts it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def gradients(layer, x):
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]
"""


def test_several_python_threads_call_one_layer():
    for layer in (
        UltraFFF(33, depth=7),
        TreeFeedForward(33, depth=4, leaf_width=3, trees=2),
        MoE(33, experts=5, expert_width=3),
    ):
        layer.eval()
        inputs = [torch.randn(tokens, 33) for tokens in (1, 7, 64, 300, 513)]

        def outputs(x: torch.Tensor, layer: torch.nn.Module = layer) -> list[torch.Tensor]:
            with torch.no_grad():
                inference = layer(x)
            y = layer(x)
            return [inference, y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()), allow_unused=True)]

        expected = [outputs(x) for x in inputs]
        start = threading.Barrier(4)

        def work(offset: int, outputs=outputs, inputs=inputs, expected=expected, start=start) -> int:
            start.wait(30)
            wrong = 0
            for i in range(offset, offset + 15):
                found = outputs(inputs[i % 5])
                wrong += sum(
                    f is not None and not torch.equal(f, e) for f, e in zip(found, expected[i % 5], strict=True)
                )
            return wrong

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) == 0


def test_a_fork_after_use_does_not_hang():
    """In the child the parent's threads are gone, and PyTorch's pool, ours too, would wait for them."""
    printed = script("""
layer, x = TreeFeedForward(64, depth=7, leaf_width=3), torch.randn(2000, 64)
expected = gradients(layer, x)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as the workers of a DataLoader
    same = all(torch.equal(a, b) for a, b in zip(gradients(layer, x), expected))
    os._exit(7 if same else 1)
end = time.time() + 30
while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.time() < end:
    time.sleep(0.02)
if status[0] == 0:
    os.kill(child, signal.SIGKILL)
print("hangs" if status[0] == 0 else os.waitstatus_to_exitcode(status[1]))
assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), expected))  # and the parent goes on
""")
    assert printed.strip() == "7"


@pytest.mark.slow
def test_workers_of_a_data_loader_may_use_a_layer():
    printed = script("""
layer, x = TreeFeedForward(64, depth=7, leaf_width=3).requires_grad_(False), torch.randn(2000, 64)
expected = layer(x)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return layer(x[500 * i : 500 * i + 500])

loader = torch.utils.data.DataLoader(Data(), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=40)
print(torch.equal(torch.cat([y[0] for y in loader]), expected))
""")
    assert printed.strip() == "True"


@pytest.mark.slow
def test_an_interrupt_during_a_long_call_is_raised_after_it():
    printed = script("""
layer = UltraFFF(512, depth=11, trees=2).requires_grad_(False)
x = torch.randn(30000, 512)
layer(x[:10])
start = time.time()
layer(x)
whole = time.time() - start

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what runs in its background ignore it

def interrupt():
    time.sleep(whole / 3)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
start = time.time()
try:
    layer(x)
    time.sleep(10)  # where it is raised if the call was over first
    print("lost")
except KeyboardInterrupt:
    print("raised", time.time() - start < whole + 9)
assert layer(x[:10]).isfinite().all()
""")
    assert printed.strip() == "raised True"


@asks_for_memory
@pytest.mark.slow
def test_many_calls_do_not_grow_the_process():
    printed = script(
        """
layers = [UltraFFF(8, depth=3), TreeFeedForward(8, depth=2, leaf_width=2, trees=2), MoE(8, experts=3, expert_width=2)]
fixed = [layer.eval().requires_grad_(False) for layer in (UltraFFF(8, depth=3), MoE(8, experts=3, expert_width=2))]
x = torch.randn(3, 8)
weights = torch.zeros(2, 1, 8), torch.zeros(2, 1), torch.zeros(2, 1, 8), torch.zeros(2, 8)
torch.set_num_threads(1)

def calls(count):
    for _ in range(count):
        for layer in fixed:
            layer(x)
    for _ in range(count // 10):
        for layer in layers:
            layer(x).sum().backward()
            for p in layer.parameters():
                p.grad = None
    for _ in range(count // 10):
        try:
            indexed_feedforward(x, torch.full((3, 1), 9), *weights)
        except RuntimeError:
            continue
        raise AssertionError
calls(10000)
before = resident()
calls(80000)
print(resident() - before)
""",
        timeout=400,
    )
    assert int(printed) < 2 * 2**20


@asks_for_memory
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trees", [1, 3])
def test_inference_allocates_the_output_and_a_little_for_each_level(dtype, trees):
    T, depth, features = 200_000, 12, 64
    printed = script(f"""
layer = UltraFFF({features}, depth={depth - 1}, trees={trees}, dtype=torch.{dtype}).requires_grad_(False)
x = torch.empty({T}, {features}, dtype=torch.{dtype}).normal_()
layer(x[:5000])
assert peak() < resident() + 4e6, "the peak lies before the call: it would say nothing"
before = peak()
y = layer(x)
print(peak() - before)
""")
    element = {"float32": 4, "bfloat16": 2}[dtype]
    output = T * features * element
    path = T * trees * (depth * 4 + 8)  # logits and leaf, which are results
    order = T * 32  # of the tokens
    assert int(printed) < output + path + order + 8e6
    assert int(printed) > output / 2  # it does measure something


@asks_for_memory
@pytest.mark.slow
def test_training_allocates_nothing_of_the_size_of_tokens_times_neurons():
    T, depth, features, width = 20_000, 11, 16, 2
    neurons = 2**depth * (1 + width)
    printed = script(f"""
layer = TreeFeedForward({features}, depth={depth}, leaf_width={width}, gradient="exact")
x = torch.randn({T}, {features})
gradients(layer, x[:100])
before = peak()
gradients(layer, x)
print(peak() - before)
""")
    assert int(printed) < 4 * T * neurons / 5  # 98 MB; T x neurons would be 490 MB


@asks_for_threads
def test_a_single_token_starts_no_threads():
    printed = script("""
layer, x = UltraFFF(64, depth=8).requires_grad_(False), torch.randn(1, 64)
before = len(os.listdir("/proc/self/task"))
layer(x)
print(len(os.listdir("/proc/self/task")) - before)
""")
    assert printed.strip() == "0"
