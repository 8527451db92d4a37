"""The order of training data: the rows of each step, and whose completions the step trains on.

Both are functions of (seed, step), and rows also of the rank. There is no state: a resumed run continues with the same
rows, and all ranks agree.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from gkd_rl.types import Example, Source


@dataclass(frozen=True)
class PromptStream:
    """An endless stream of rows in shuffled epochs.

    Attributes:
        examples: all training rows.
        per_step: rows per optimiser step over all ranks; each rank gets an equal share.
        seed: of the shuffling; epoch e is shuffled by (seed, e).
    """

    examples: Sequence[Example]
    per_step: int
    seed: int

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Indices into `examples` of one rank's rows, [per_step / world].

        Args:
            step: optimiser step, from 0.
            rank: of this process.
            world: number of processes.
        """
        share = self.per_step // world
        first = step * self.per_step + rank * share
        return [self._row(position) for position in range(first, first + share)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.examples))
        return _epoch_order(len(self.examples), self.seed, epoch)[offset]


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> list[int]:
    """The shuffled row indices of one epoch."""
    order = list(range(size))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


def choose_source(lmbda: float, seed: int, step: int, otherwise: Source = Source.dataset) -> Source:
    """Source of a step's completions: the student with probability λ, else `otherwise` (GKD paper, Algorithm 1).

    One draw per optimiser step, as in the paper.

    Args:
        lmbda: student data fraction λ, in [0, 1].
        seed: of the run.
        step: optimiser step, from 0.
        otherwise: references of the data set, or samples of the teacher.
    """
    draw = random.Random(f"mixing {seed} {step}").random()
    return Source.student if draw < lmbda else otherwise
