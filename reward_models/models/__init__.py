"""Rewards computed by a model: entailment, a scalar reward model, a judge behind a server.

Read `checkpoint.py`, `scalar.py` and `judge.py`, then `classifier.py` (training a small entailment model),
`training_rows.py` (its rows and its quality on held-out ones) and `entailment.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.models.checkpoint import Checkpoint
    from reward_models.models.entailment import Entailment, TrainedEntailment
    from reward_models.models.judge import ChatServer, Judge
    from reward_models.models.scalar import ScalarReward

_MODULES = {
    "ChatServer": "judge",
    "Checkpoint": "checkpoint",
    "Entailment": "entailment",
    "Judge": "judge",
    "ScalarReward": "scalar",
    "TrainedEntailment": "entailment",
}
__all__ = ["ChatServer", "Checkpoint", "Entailment", "Judge", "ScalarReward", "TrainedEntailment"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: a judge behind a server needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
