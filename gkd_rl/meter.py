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
        self._hits = np.zeros(2)  # completions whose teacher's states were on disk, and all that were looked for

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

    def remembered(self, phase: str, hits: int, completions: int) -> None:
        """Counts completions that a phase did not have to compute; a phase without any FLOPs is named all the same."""
        self._flops[phase] += 0
        self._hits += (hits, completions)

    def take(self) -> dict[str, float]:
        """time/PHASE, flops/PHASE and the shares of padding and of remembered completions, since the last call."""
        spent = {f"time/{name}": float(value) for name, value in self._seconds.items()}
        spent |= {f"flops/{name}": float(value) for name, value in self._flops.items()}
        if self._tokens[1] > 0:
            spent["padding_share"] = float(1 - self._tokens[0] / self._tokens[1])
        if self._hits[1] > 0:
            spent["teacher_cache/hit_share"] = float(self._hits[0] / self._hits[1])
        self._seconds.clear()
        self._flops.clear()
        self._tokens[:] = 0
        self._hits[:] = 0
        return spent
