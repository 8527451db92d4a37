"""Which rows a step trains on, decided by (seed, step, rank): shuffled epochs, nothing to save for a resume.

lambda: whose completions a step trains on (GKD paper, Algorithm 1).

One coin per optimiser step, as in the paper, decided by (seed, step) alone: the same on every rank and after a resume.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from gkd_rl.types import Example, Source


@dataclass(frozen=True)
class PromptStream:
    """An endless shuffled stream over the rows.

    Attributes:
        examples: all training rows.
        per_step: rows per optimiser step over all ranks; an equal share goes to each rank.
        seed: of the shuffles; epoch e is shuffled by (seed, e).
    """

    examples: Sequence[Example]
    per_step: int
    seed: int

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Indices of the rows of one rank in step `step` (from 0)."""
        share = self.per_step // world
        first = step * self.per_step + rank * share
        return [self._row(position) for position in range(first, first + share)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.examples))
        return _shuffled(len(self.examples), self.seed, epoch)[offset]


@functools.lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, epoch: int) -> list[int]:
    """The order of one epoch."""
    order = list(range(size))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


def choose_source(lmbda: float, seed: int, step: int, otherwise: Source = Source.dataset) -> Source:
    """Student rollouts with probability `lmbda`, `otherwise` (references or teacher samples) with the rest."""
    coin = random.Random(f"mixing {seed} {step}").random()
    return Source.student if coin < lmbda else otherwise
