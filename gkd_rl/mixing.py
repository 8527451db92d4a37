"""lambda: whose completions a step trains on (GKD paper, Algorithm 1).

One coin per optimiser step, as in the paper, decided by (seed, step) alone: the same on every rank and after a resume.
"""

from __future__ import annotations

import random

from gkd_rl.types import Source


def choose(lmbda: float, seed: int, step: int, otherwise: Source = Source.dataset) -> Source:
    """Student rollouts with probability `lmbda`, `otherwise` (references or teacher samples) with the rest."""
    coin = random.Random(f"mixing {seed} {step}").random()
    return Source.student if coin < lmbda else otherwise
