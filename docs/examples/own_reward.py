"""A reward of your own in ten lines.

A reward component is a callable with the signature of trl's GRPO rewards. `Composite` adds components up and can be
tried on any text. A run takes the component by its name in a setting; `trusted_packages` allows code of a package that
is not this project's, here this file.
"""

from collections.abc import Sequence
from typing import Any

from gkd_rl import run_experiment
from reward_models import Composite


class Mentions:
    """Share of the given words that a completion mentions."""

    bounds = (0.0, 1.0)  # optional; values outside are reported

    def __init__(self, words: Sequence[str]) -> None:
        self.words = set(words)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One number for each completion, higher is better."""
        return [len(self.words & set(text.split())) / len(self.words) for text in completions]


SETTINGS = [
    "alpha=0",  # the reward alone, without a teacher
    "teacher=none",
    "reward=none",
    "+reward.components.mentions={_target_: own_reward.Mentions, words: [the, a]}",
    "+reward.weights.mentions=1",
    "trusted_packages=[own_reward]",
]
TINY = [
    "scale.threads=1",
    "task.train_size=200",
    "task.test_size=20",
    "student.sft.steps=30",
    "trainer.steps=30",
    "trainer.warmup_steps=5",
    "task.max_completion_tokens=12",
    "evaluation.rollout_prompts=20",
    "evaluation.self_bleu_prompts=0",
    "tracking=none",
]


def main() -> None:
    """Score two texts, then train on the reward."""
    reward = Composite({"mentions": Mentions(["the", "a"])}, {"mentions": 1.0})
    print(reward(["", ""], ["a storm hit the coast", "rain"]).total)

    results = run_experiment([*SETTINGS, *TINY])

    before, after = (results.estimates()[model]["sampled/reward"].mean for model in ("student before", "student after"))
    print(f"\nreward of samples: {before:.2f} before training, {after:.2f} after")


if __name__ == "__main__":
    main()
