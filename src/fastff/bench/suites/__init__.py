"""What is compared: each suite is a list of groups, whose candidates are measured side by side."""

from fastff.bench.suites import (
    blocks,
    equal_loss,
    generate,
    given,
    gpu,
    inference,
    models,
    quick,
    step,
    training,
    width,
)
from fastff.bench.suites.suite import Suite

SUITES: dict[str, Suite] = {
    "quick": quick.SUITE,
    "inference": inference.SUITE,
    "training": training.SUITE,
    "width": width.SUITE,
    "blocks": blocks.SUITE,
    "step": step.SUITE,
    "models": models.SUITE,
    "generate": generate.SUITE,
    "gpu": gpu.SUITE,
    "given": given.SUITE,
    "equal-loss": equal_loss.SUITE,
}

__all__ = ["SUITES", "Suite"]
