"""Weighted sum of rewards, every component kept beside the sum.

One reward for each kind of row: those of a mixture are scored by what fits them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.guard import Guard, GuardedReward, Reward

RESERVED = ("mean", "std", "failed")  # name what is told of the total


@dataclass(frozen=True)
class Scores:
    """Rewards of B completions: the weighted total, each component by name, and who has none of its own.

    Attributes:
        total: weighted sums.
        components: name -> rewards.
        failed: whether a component failed, for each completion; None where failures are not let pass.
    """

    total: list[float]
    components: dict[str, list[float]]
    failed: list[bool] | None = None


class Composite:
    """r = Σ_i weight_i r_i.

    Args:
        components: name -> reward with GRPO's signature.
        weights: name -> weight; a component of weight 0 is computed and logged only.
        guard: how components are called, and what happens where one fails.

    Raises:
        ValueError: names differ.
    """

    def __init__(
        self, components: Mapping[str, Reward], weights: Mapping[str, float], guard: Guard | None = None
    ) -> None:
        if set(components) != set(weights):
            raise ValueError(f"components {sorted(components)} and weights {sorted(weights)} must have the same names.")
        if set(RESERVED) & set(components):
            raise ValueError(
                f"a component cannot be called {', '.join(RESERVED)}: those name the total in the metrics."
            )
        self.guard = guard or Guard()
        self.components = {name: GuardedReward(name, reward, self.guard) for name, reward in components.items()}
        self.weights = dict(weights)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> Scores:
        """Score completions.

        Raises:
            ValueError: a component failed, and the guard says stop.
        """
        lists = {name: list(values) for name, values in columns.items()}
        rows = [
            (prompt, completion, {name: values[i] for name, values in lists.items()})
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        found = {name: reward(rows) for name, reward in self.components.items()}
        values = {
            name: [self.guard.failure_value if value is None else value for value in row] for name, row in found.items()
        }
        total = [sum(self.weights[name] * row[i] for name, row in values.items()) for i in range(len(rows))]
        failed = [any(row[i] is None for row in found.values()) for i in range(len(rows))]
        return Scores(total, values, failed if self.guard.on_failure == "replace" else None)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest reward of the components that declare them, by an attribute `bounds`."""
        found = {name: getattr(guarded.reward, "bounds", None) for name, guarded in self.components.items()}
        return {name: bounds for name, bounds in found.items() if bounds is not None}

    def remembered(self) -> dict[str, dict[str, float]]:
        """Rewards that each component keeps by text, for `remember` of another process."""
        return {name: guarded.kept() for name, guarded in self.components.items()}

    def remember(self, rewards: Mapping[str, Mapping[str, float]]) -> None:
        """Go on with the rewards of `remembered`: computed again in another batch, a model's round otherwise."""
        for name, kept in rewards.items():
            self.components[name].keep(kept)

    def untrained(self) -> list[str]:
        """Components whose model is trained at the first call: they have a method `trained()`, and it says no."""
        found = {name: getattr(guarded.reward, "trained", None) for name, guarded in self.components.items()}
        return [name for name, trained in found.items() if trained is not None and not trained()]


class ByKind:
    """The reward of a row is that of its kind.

    Args:
        column: tells the kinds apart.
        rewards: kind -> reward.
    """

    def __init__(self, column: str, rewards: Mapping[str, Callable[..., Sequence[float | None]]]) -> None:
        if not rewards:
            raise ValueError("rewards is empty: it takes at least one kind with its reward.")
        self.column = column
        self.rewards = dict(rewards)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Score completions, each with the columns of its row.

        Raises:
            ValueError: the column is missing, or names a kind that has no reward.
        """
        if self.column not in columns:
            raise ValueError(
                f"rows have no column {self.column!r}, which tells kinds apart: {', '.join(self.rewards)}."
            )
        kinds = list(columns[self.column])
        unknown = next((kind for kind in kinds if kind not in self.rewards), None)
        if unknown is not None:
            raise ValueError(f"{self.column}={unknown!r} has no reward: kinds are {', '.join(self.rewards)}.")
        scores: list[float | None] = [None] * len(completions)
        for kind, reward in self.rewards.items():
            rows = [i for i, one in enumerate(kinds) if one == kind]
            if not rows:
                continue
            own = {name: [values[i] for i in rows] for name, values in columns.items()}
            # a column of another kind is None throughout: this reward does as if there were none
            own = {name: values for name, values in own.items() if any(value is not None for value in values)}
            found = reward(prompts=[prompts[i] for i in rows], completions=[completions[i] for i in rows], **own)
            for i, score in zip(rows, found, strict=True):
                scores[i] = score
        return scores
