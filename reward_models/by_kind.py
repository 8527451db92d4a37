"""One reward for each kind of row: those of a mixture are scored by what fits them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


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
