"""Rewards made of other rewards: the weighted sum `Composite`, and `ByKind`, which scores each row by its kind.

`Composite` is what a training run calls. It keeps every component beside the sum, and passes each call through
`reward_models.guard` (batches, cache, time limit, failures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.guard import Guard, GuardedReward, Reward

RESERVED = ("mean", "std", "failed")  # suffixes of the metrics of the total


@dataclass(frozen=True)
class Scores:
    """Rewards of B completions.

    Attributes:
        total: weighted sums, [B].
        components: name -> rewards of that component, [B].
        failed: whether any component failed, [B]; None if failures raise (`Guard.on_failure="stop"`).
    """

    total: list[float]
    components: dict[str, list[float]]
    failed: list[bool] | None = None


class Composite:
    """Weighted sum r = Σ_i weight_i r_i.

    Args:
        components: name -> reward with the signature of trl's GRPO rewards.
        weights: name -> weight; a component of weight 0 is computed and logged, and does not change the total.
        guard: how components are called and what happens if one fails; None: `Guard()`.

    Raises:
        ValueError: components and weights have different names, or a name is in `RESERVED`.
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
        """Score B completions.

        Args:
            prompts: [B].
            completions: [B].
            **columns: further columns of the rows by name, each [B].

        Raises:
            ValueError: a component failed and `Guard.on_failure` is "stop".
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
        """Name -> (lowest, highest) reward of the components that declare them in an attribute `bounds`."""
        found = {name: getattr(guarded.reward, "bounds", None) for name, guarded in self.components.items()}
        return {name: bounds for name, bounds in found.items() if bounds is not None}

    def cached_rewards(self) -> dict[str, dict[str, float]]:
        """Component -> its cached rewards, for `restore_cache` after a resume."""
        return {name: guarded.cached() for name, guarded in self.components.items()}

    def restore_cache(self, rewards: Mapping[str, Mapping[str, float]]) -> None:
        """Replace the caches by an earlier `cached_rewards()`.

        A resume needs them to be exact: a model reward computed again in another batch can differ in the last digit.
        """
        for name, cached in rewards.items():
            self.components[name].restore(cached)

    def untrained(self) -> list[str]:
        """Components whose model the first call trains: those with a method `trained()` that returns False."""
        found = {name: getattr(guarded.reward, "trained", None) for name, guarded in self.components.items()}
        return [name for name, trained in found.items() if trained is not None and not trained()]


class ByKind:
    """Reward of a mixture of tasks: each row is scored by the reward of its kind.

    Args:
        column: column that holds the kind of a row.
        rewards: kind -> reward.

    Raises:
        ValueError: `rewards` is empty.
    """

    def __init__(self, column: str, rewards: Mapping[str, Callable[..., Sequence[float | None]]]) -> None:
        if not rewards:
            raise ValueError("rewards is empty: it takes at least one kind with its reward.")
        self.column = column
        self.rewards = dict(rewards)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """Score B completions; each reward gets the rows of its kind, and their columns that are not None throughout.

        Raises:
            ValueError: the column is missing, or has a kind without a reward.
        """
        if self.column not in columns:
            raise ValueError(
                f"rows have no column {self.column!r}, which holds the kind of a row: {', '.join(self.rewards)}."
            )
        kinds = list(columns[self.column])
        unknown = next((kind for kind in kinds if kind not in self.rewards), None)
        if unknown is not None:
            raise ValueError(f"{self.column}={unknown!r} has no reward: kinds are {', '.join(self.rewards)}.")
        scores: list[float | None] = [None] * len(completions)
        for kind, reward in self.rewards.items():
            rows = [i for i, row_kind in enumerate(kinds) if row_kind == kind]
            if not rows:
                continue
            own = {name: [values[i] for i in rows] for name, values in columns.items()}
            # A column of another kind is None in all rows of this one; the reward then finds it absent.
            own = {name: values for name, values in own.items() if any(value is not None for value in values)}
            found = reward(prompts=[prompts[i] for i in rows], completions=[completions[i] for i in rows], **own)
            for i, score in zip(rows, found, strict=True):
                scores[i] = score
        return scores
