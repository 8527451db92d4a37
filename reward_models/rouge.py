"""ROUGE of a completion with its reference (Lin 2004), as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge:
    """F1 with stemming, 0 to 1.

    Args:
        kind: which of the ROUGE scores; rougeLsum takes lines as sentences.
    """

    bounds = (0.0, 1.0)

    def __init__(self, kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind}: takes one of {', '.join(KINDS)}.")
        self.kind = kind
        self._scorer = RougeScorer([kind], use_stemmer=True)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any
    ) -> list[float]:
        """One score for each completion."""
        pairs = zip(reference, completions, strict=True)
        return [float(self._scorer.score(truth, text)[self.kind].fmeasure) for truth, text in pairs]
