"""Rewards: callables `(prompts, completions, **columns) -> list[float | None]`, higher is better.

The signature is that of trl's GRPO rewards, so those drop in. Nothing here imports gkd_rl: a reward can be tried on any
text. `Composite` adds them up and refuses a reward that is None, not finite, or one too few. Read `composite.py`,
`guard.py` and `targets.py`, then the rewards in `text/`, `models/` and `code/`; `score.py` and `train.py` are commands.
"""

from reward_models.composite import ByKind, Composite, Scores
from reward_models.guard import Guard

__all__ = ["ByKind", "Composite", "Guard", "Scores"]
