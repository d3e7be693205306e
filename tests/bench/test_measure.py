"""How samples are taken: rotation of inputs, calls a sample, flushing, order, budget."""

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from fastff import bench
from fastff.bench import machine, measure
from fastff.bench.inputs import Rotation, batch_count
from fastff.bench.measure import COLD, WARM, Flush, Subject, rounds_of, summary


def rotation(tokens: int = 1) -> Rotation:
    return Rotation(tokens, 3, dtype=torch.float32, seed=0)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(measure, "perf_counter", clock)
    return clock


def test_inputs_are_distinct_and_handed_out_in_turn():
    for tokens in (1, 2, 16, 128, 2048):
        assert batch_count(tokens) >= 4
    assert batch_count(1) >= 64
    batches = rotation()
    assert len({x.sum().item() for (x,) in batches.batches}) == len(batches)
    n = len(batches)
    taken = batches.take(n - 1, n + 2)
    assert taken[0] is batches.batches[-1]
    assert taken[1] is batches.batches[0]
    assert taken[-1] is batches.batches[0]


def test_gradients_of_the_output_come_with_inputs_that_ask_for_one():
    batches = Rotation(5, 3, gradient_features=2, dtype=torch.bfloat16, seed=0)
    x, gradient = batches.batches[0]
    assert x.requires_grad
    assert (x.shape, gradient.shape, gradient.dtype) == ((5, 3), (5, 2), torch.bfloat16)
    again = Rotation(5, 3, gradient_features=2, dtype=torch.bfloat16, seed=0)
    assert torch.equal(x, again.batches[0][0])


def test_a_warm_sample_lasts_a_millisecond_and_meets_all_inputs(clock):
    seen = []

    def call(x):
        seen.append(x)
        clock.now += 1e-5

    subject = Subject(call, rotation(), seconds=0.5)
    subject.calibrate()
    assert subject.seconds == pytest.approx(1e-5)
    seen.clear()
    for _ in rounds_of([subject], cache=WARM, rounds=3, budget=1.0):
        pass
    assert subject.samples == pytest.approx([1e-5] * 3)
    assert len({id(x) for x in seen}) == len(subject.rotation)
    assert len(seen) >= 3 * (100 + len(subject.rotation))  # a millisecond each, and the untimed calls before


def test_a_call_may_be_of_the_whole_rotation(clock):
    inputs = rotation()
    made = []

    def call_all():
        made.append(len(inputs))
        clock.now += 1e-5 * len(inputs)

    subject = Subject(call_all, inputs, seconds=0.5, whole=True)
    subject.calibrate()
    assert subject.seconds == pytest.approx(1e-5)
    made.clear()
    list(rounds_of([subject], cache=WARM, rounds=3, budget=1.0))
    assert subject.samples == pytest.approx([1e-5] * 3)
    assert sum(made) >= 3 * 100


def test_cold_flushes_before_each_call_outside_of_the_time(clock, monkeypatch):
    events = []

    class Spy:
        def __call__(self) -> None:
            events.append("flush")
            clock.now += 1.0

    monkeypatch.setattr(measure, "Flush", Spy)

    def call(x):
        events.append("call")
        clock.now += 1e-5

    subject = Subject(call, rotation(), seconds=1e-5)
    list(rounds_of([subject], cache=COLD, rounds=4, budget=100.0))
    assert events == ["flush", "call"] * 4
    assert subject.samples == pytest.approx([1e-5] * 4)


def test_a_flush_writes_four_times_the_last_cache(monkeypatch):
    monkeypatch.setattr(measure, "caches", lambda: {"L1": 2**15, "L3": 2**20})
    flush = Flush()
    assert flush.buffer.nbytes == 4 * 2**20
    flush()
    assert flush.buffer.eq(1).all()
    monkeypatch.setattr(measure, "caches", dict)
    assert Flush().buffer.nbytes == 4 * measure.UNKNOWN_CACHE


def test_candidates_take_turns_each_round_from_another_one_on():
    order = []
    subjects = [Subject(lambda x, name=name: order.append(name), rotation(), seconds=1.0) for name in "abc"]
    list(rounds_of(subjects, cache=WARM, rounds=3, budget=10.0))
    assert "".join(order) == "abcbcacab"


def test_nothing_stands_between_a_timed_call_and_pytorch(tmp_path, monkeypatch):
    """A mode, such as that of a default device, calls each function of PyTorch through Python: three times the time."""
    run_calls, modes = Subject.run, []

    def run(self, calls):
        modes.append(_get_current_function_mode_stack())
        return run_calls(self, calls)

    monkeypatch.setattr(Subject, "run", run)
    bench.run(["quick"], bench.Settings(in_features=4, out_features=4, depth=1, tokens=(1,), rounds=3), tmp_path)
    assert len(modes) > 3
    assert not any(modes)


def test_a_budget_ends_a_measurement_after_three_samples(clock):
    def call(x):
        clock.now += 2.0

    slow = Subject(call, rotation(), seconds=2.0)
    list(rounds_of([slow], cache=WARM, rounds=20, budget=1.0))
    assert slow.samples == [2.0] * 3
    list(rounds_of([slow], cache=WARM, rounds=20, budget=11.0))
    assert len(slow.samples) == 5


def test_a_failure_leaves_the_others_running():
    def fail(x):
        raise MemoryError

    bad, good = Subject(fail, rotation(), seconds=1.0), Subject(lambda x: None, rotation(), seconds=1.0)
    list(rounds_of([bad, good], cache=WARM, rounds=3, budget=10.0))
    assert isinstance(bad.failure, MemoryError)
    assert len(good.samples) == 3


def test_median_and_quartiles():
    assert summary([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median_s": 3.0, "low_s": 2.0, "high_s": 4.0}


def test_the_machine_tells_no_paths_or_names():
    import os
    import platform

    found = machine.machine()
    assert found["cpu"]
    assert platform.node() not in str(found)
    assert os.sep not in str({k: v for k, v in found.items() if k != "cpu"})
    assert all(size > 0 for size in machine.caches().values())


def test_caches_that_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.caches() == {}
    for i, (kind, level, size) in enumerate([("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 3, "16M")]):
        (tmp_path / f"index{i}").mkdir()
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (tmp_path / f"index{i}" / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()
    assert machine.caches() == {"L1": 48 * 2**10, "L3": 16 * 2**20}
