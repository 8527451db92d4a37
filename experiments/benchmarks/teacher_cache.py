"""A step on references (lambda = 0): the teacher's hidden states computed, computed and stored, or loaded from disk.

    python -m experiments.benchmarks.teacher_cache

The models are those of `steps.py` (SmolLM2-135M's shapes, random weights), prompts have 64 to 384 tokens, references 8
to 47; the divergence is JSD(0.9). The warm side repeats texts whose outputs are in its cache.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks import Side, Work, parser_of, speedup, summary, take_turns, write
from experiments.benchmarks.steps import Bench, add_sizes
from gkd_rl.training.teacher_data import TeacherOutputCache, TensorShards
from gkd_rl.training.trainer import Trainer


class CacheBench(Bench):
    """Models and references, and a step of each side."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        draw, words = np.random.default_rng(arguments.seed), [f"w{i}" for i in range(1000)]
        self.examples = [
            replace(one, reference=" ".join(draw.choice(words, draw.integers(8, arguments.completion))))
            for one in self.examples
        ]

    def on_references(self) -> Trainer:
        """Our trainer without rollouts."""
        return self.trainer("alpha=1", "lmbda=0")

    def computed(self) -> Callable[[], Work]:
        """Without a cache."""
        trainer, steps = self.on_references(), itertools.count()
        return lambda: _step(trainer, next(steps))

    def cold(self, folder: Path) -> Callable[[], Work]:
        """Every step has an empty cache and fills it."""
        trainer, steps = self.on_references(), itertools.count()

        def run() -> Work:
            number = next(steps)
            trainer.models.output_cache = _outputs(folder / str(number))
            work = _step(trainer, number)
            trainer.models.close()
            return work

        return run

    def warm(self, folder: Path, count: int) -> Callable[[], Work]:
        """The first `count` steps again, with their outputs in the cache."""
        trainer, steps = self.on_references(), itertools.count()
        trainer.models.output_cache = _outputs(folder)
        for number in range(count):
            _step(trainer, number)
        trainer.models.close()
        trainer.models.output_cache = _outputs(folder)
        return lambda: _step(trainer, next(steps))


def _outputs(folder: Path) -> TeacherOutputCache:
    return TeacherOutputCache(TensorShards(folder, limit=2**33), tolerance=1e-3)


def _step(trainer: Trainer, number: int) -> Work:
    return Work(trainer.step(number).metrics["tokens/student_trained"])


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    add_sizes(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = CacheBench(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side("computed", bench.computed()),
            Side("cold: computed and stored", bench.cold(Path(folder) / "cold")),
            Side("warm: loaded", bench.warm(Path(folder) / "warm", arguments.rounds + 1)),
        ]
        take_turns(sides, arguments.rounds)
    rows = [
        {"side": one.name, "seconds a step": summary(one.seconds), "times as fast": speedup(one, sides[0])}
        for one in sides
    ]
    write(arguments, rows)


if __name__ == "__main__":
    main()
