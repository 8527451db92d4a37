"""What one step spends: seconds by phase, measured, FLOPs by phase, estimated from the models' shapes, and padding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import numpy as np
import torch

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

    def __init__(self, waits: bool = False) -> None:
        """`waits`: a phase ends when the GPU has done what it was given; else its work can fall into a later phase."""
        self._waits = waits and torch.cuda.is_available()
        self._seconds: Counter[str] = Counter()
        self._flops: Counter[str] = Counter()
        self._costs: dict[int, ModelCost] = {}
        self._tokens = np.zeros(2)  # that the student was trained on, and with padding

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase of the step."""
        start = time.perf_counter()
        yield
        if self._waits:
            torch.cuda.synchronize()
        self._seconds[name] += time.perf_counter() - start  # pyright: ignore[reportArgumentType]

    def flops(self, phase: str, model: HiddenStateModel, kind: Pass, rollout: Rollout) -> None:
        """Adds the FLOPs of one pass of a model through a rollout."""
        if id(model) not in self._costs:
            self._costs[id(model)] = ModelCost.of(model)
        cost = self._costs[id(model)]
        self._flops[phase] += getattr(cost, kind.value)(rollout)
        if kind is Pass.training:
            self._tokens += np.array(cost.tokens(rollout))

    def take(self) -> dict[str, float]:
        """time/PHASE, flops/PHASE and the share of padding in what was trained on, since the last call."""
        spent = {f"time/{name}": float(value) for name, value in self._seconds.items()}
        spent |= {f"flops/{name}": float(value) for name, value in self._flops.items()}
        if self._tokens[1] > 0:
            spent["padding_share"] = float(1 - self._tokens[0] / self._tokens[1])
        self._seconds.clear()
        self._flops.clear()
        self._tokens[:] = 0
        return spent
