"""What the comparisons that have a name share: how the papers train, and how we do."""

from typing import Any

# P1's training (facts: SGD 0.2, batch 256, hardening weight 3 in its explorative and comparison experiments).
AS_IT_IS = {"balance": 0.0, "grow": 0.0}  # no help for the routing
P1_SGD = {**AS_IT_IS, "optimizer": "sgd", "lr": 0.2, "batch_size": 256, "weight_decay": 0.0, "schedule": "constant"}
P1_ADAM = {
    **AS_IT_IS,
    "optimizer": "adamw",
    "lr": 1e-3,
    "batch_size": 4096,
    "weight_decay": 0.0,
    "schedule": "plateau",
    "plateau_epochs": 7,
}
P1_HARDENING = {"hardening": 3.0}
# The weight that hardens leaves of one neuron without collapsing them at once; P1 does not state a schedule.
RISING_HARDENING = {"hardening": 30.0, "hardening_schedule": "warmup"}
P1_MOE = {"importance": 0.1, "load": 0.1}

# What we recommend; dense layers and experts get the same optimiser, schedule and number of trials.
ADAMW = {**AS_IT_IS, "optimizer": "adamw", "lr": 2e-3, "batch_size": 128, "weight_decay": 0.1, "schedule": "cosine"}
RECIPE = {**ADAMW, "balance": 0.1, "grow": 0.4}
DROPOUTS: tuple[dict[str, Any], ...] = ({}, {"input_dropout": 0.2})


def is_cifar10(data: str) -> bool:
    """Whether data of that name are CIFAR-10, of which the first paper has figures."""
    return "cifar10" in data.lower() or "cifar-10" in data.lower()


def trials(settings: dict[str, Any], *changes: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The settings, with each of the changes."""
    return tuple({**settings, **change} for change in changes)
