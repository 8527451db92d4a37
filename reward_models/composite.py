"""Weighted sum of rewards, every component kept beside the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Scores:
    """Rewards of B completions: the weighted total and each component by name."""

    total: list[float]
    components: dict[str, list[float]]


class Composite:
    """r = Σ_i weight_i r_i.

    Args:
        components: name -> reward with GRPO's signature.
        weights: name -> weight; a component of weight 0 is computed and logged only.

    Raises:
        ValueError: names differ.
    """

    def __init__(self, components: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        if set(components) != set(weights):
            raise ValueError(f"components {sorted(components)} and weights {sorted(weights)} must have the same names.")
        if {"mean", "std"} & set(components):
            raise ValueError("a component cannot be called mean or std: those name the total in the metrics.")
        self.components = dict(components)
        self.weights = dict(weights)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Scores:
        """Score completions.

        Raises:
            ValueError: a component returned the wrong number of rewards, None, or a number that is not finite.
        """
        values = {name: self._run(name, prompts, completions, columns) for name in self.components}
        total = [sum(self.weights[name] * row[i] for name, row in values.items()) for i in range(len(completions))]
        return Scores(total, values)

    def _run(
        self, name: str, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> list[float]:
        rewards = list(self.components[name](prompts=prompts, completions=completions, **columns))
        if len(rewards) != len(completions):
            raise ValueError(f"reward {name!r} returned {len(rewards)} numbers for {len(completions)} completions.")
        for i, reward in enumerate(rewards):
            if reward is None or not math.isfinite(reward):
                raise ValueError(
                    f"reward {name!r} returned {reward} for completion {i}: {completions[i][:200]!r}; "
                    "a reward must be a finite number."
                )
        return [float(reward) for reward in rewards if reward is not None]
