"""What one step spends: seconds by phase, measured, and FLOPs by phase, estimated from the models' shapes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.cost import ModelCost
from gkd_rl.types import Rollout


class Pass(Enum):
    """How a model goes through a rollout."""

    forward = "forward"
    training = "training"
    generation = "generation"


class StepMeter:
    """Adds up the seconds and FLOPs of one step."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()
        self._costs: dict[int, ModelCost] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase of the step."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start  # pyright: ignore[reportArgumentType]

    def flops(self, phase: str, model: HiddenStateModel, kind: Pass, rollout: Rollout) -> None:
        """Adds the FLOPs of one pass of a model through a rollout."""
        if id(model) not in self._costs:
            self._costs[id(model)] = ModelCost.of(model)
        self._flops[phase] += getattr(self._costs[id(model)], kind.value)(rollout)

    def take(self) -> dict[str, float]:
        """time/PHASE and flops/PHASE since the last call."""
        spent = {f"time/{name}": float(value) for name, value in self._seconds.items()}
        spent |= {f"flops/{name}": float(value) for name, value in self._flops.items()}
        self._seconds.clear()
        self._flops.clear()
        return spent
