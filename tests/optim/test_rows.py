"""The C++ of the row-wise AdamW against its definition in Python, and its arguments."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastff.nn import UltraFFF
from fastff.ops import instruction_set, use_backend
from fastff.optim import RowwiseAdamW

pytestmark = pytest.mark.skipif(instruction_set() is None, reason="this installation lacks the compiled kernels")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_equals_the_definition_whatever_the_threads():
    E, ways = 37, (("reference", 1), ("cpu", 1), ("cpu", 3))  # no whole vectors
    layers = [UltraFFF(E, depth=7, trees=2) for _ in ways]
    weights = [layer.w_in for layer in layers]
    for p in weights[1:]:
        p.data.copy_(weights[0])
    optimizers = [RowwiseAdamW([p], model=layer) for p, layer in zip(weights, layers, strict=True)]
    for step in range(60):
        rows = torch.randperm(510)[: {20: 400, 30: 0, 40: 300}.get(step, 12)].sort().values
        place, values, met = torch.stack([rows // 255, rows % 255]), torch.randn(len(rows), E), torch.rand(2, 511) < 0.1
        for (backend, threads), p, optimizer in zip(ways, weights, optimizers, strict=True):
            torch.set_num_threads(threads)
            optimizer.param_groups[0] |= {
                "lr": 1e-2 / (1 + step),
                "betas": (0.9 if step < 50 else 0.8, 0.999),
                "eps": 1e-4 if step < 25 else 1e-3,
            }
            p.grad = torch.sparse_coo_tensor(place, values, p.shape, check_invariants=True)
            with use_backend(backend):
                optimizer.step()
                optimizer._rows[p].read(met)
        known = [o._rows[p] for p, o in zip(weights, optimizers, strict=True)]
        assert all(r.current == (len(rows) > 200) for r in known)
        theirs, mine, threaded = ([*r._tensors(), r.pending, r.behind, r.state["step"]] for r in known)
        for a, b, c in zip(theirs, mine, threaded, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6 * a.max().item())
            assert torch.equal(b, c)


def arguments() -> dict[str, Any]:
    R, E = 9, 40
    return {
        "weight": torch.randn(R, E),
        "mean": torch.randn(R, E),
        "square": torch.rand(R, E),
        "pending": torch.rand(9, R, dtype=torch.float64),
        "behind": torch.ones(R, dtype=torch.bool),
        "rows": torch.tensor([0, 3, 8]),
        "grad": torch.randn(3, E),
        "all": False,
        "eps": 1e-8,
    } | {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "step": 2.0}


@pytest.mark.parametrize("name", ["bring_rows", "step_rows"])
def test_wrong_tensors_are_named_before_any_is_touched(name):
    op = getattr(torch.ops.fastff, name)
    names = [argument.name for argument in op.default._schema.arguments]
    right = arguments()
    before = {key: value.clone() for key, value in right.items() if isinstance(value, Tensor)}
    wrong = [("rows", torch.tensor(rows)) for rows in ([0, 3, 9], [-1, 3, 8], [3, 0, 8], [0, 3, 3])]
    for key in before.keys() & names:
        t = right[key]
        wrong += [(key, t.to(torch.float16)), (key, t[:, None])]
        if key != "rows":
            wrong.append((key, t[:-1]))
        if key not in ("rows", "grad"):
            wrong.append((key, torch.stack([t, t], -1)[..., 0]))  # not contiguous
    for key, value in wrong:
        also = "|mean" if key == "weight" else ""  # of which weight gives the shape
        with pytest.raises(RuntimeError, match=rf"\b({key}{also})\b.* must"):
            op(*({**right, key: value}[n] for n in names))
    assert all(torch.equal(right[key], t) for key, t in before.items())
    op(*(right[n] for n in names))
    assert not torch.equal(right["weight"], before["weight"])
