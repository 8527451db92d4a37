"""Is a completion one of the texts that are known to be right?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Accepted:
    """1 if a completion is among its row's accepted texts but for spaces, else 0."""

    bounds = (0.0, 1.0)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], accepted: Sequence[Sequence[str]], **columns: Any
    ) -> list[float]:
        """Score completions by the column `accepted`: for each row a list of texts.

        Raises:
            ValueError: a row has none.
        """
        empty = next((i for i, texts in enumerate(accepted) if isinstance(texts, str) or not texts), None)
        if empty is not None:
            raise ValueError(f"row {empty} has accepted={accepted[empty]!r}: it takes a list of at least one text.")
        rows = zip(completions, accepted, strict=True)
        return [float(_plain(text) in map(_plain, texts)) for text, texts in rows]


def _plain(text: str) -> str:
    return " ".join(text.split())
