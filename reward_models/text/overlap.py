"""ROUGE of a completion with its reference (Lin 2004), as a reward.

BLEU and chrF of a completion with its reference through sacrebleu, as rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge:
    """F1 with stemming, 0 to 1.

    Args:
        kind: which of the ROUGE scores; rougeLsum takes lines as sentences.
    """

    bounds = (0.0, 1.0)

    def __init__(self, kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]) -> None:
        if kind not in ROUGE_KINDS:
            raise ValueError(f"kind={kind}: takes one of {', '.join(ROUGE_KINDS)}.")
        self.kind = kind
        self._scorer = RougeScorer([kind], use_stemmer=True)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any
    ) -> list[float]:
        """One score for each completion."""
        pairs = zip(reference, completions, strict=True)
        return [float(self._scorer.score(truth, text)[self.kind].fmeasure) for truth, text in pairs]


OVERLAP_KINDS = ("bleu", "chrf", "chrf++")


class Overlap:
    """A sentence's score, 0 to 1.

    BLEU (Papineni et al. 2002) with sacrebleu's smoothing of sentences ("exp"), over the orders that the sentence has.
    chrF: Popović 2015; chrF++ adds words and pairs of words.

    Args:
        kind: which of them.
        tokenize: sacrebleu's tokenizer of BLEU, e.g. 13a, intl, zh, char, none.
    """

    bounds = (0.0, 1.0)

    def __init__(self, kind: Literal["bleu", "chrf", "chrf++"], tokenize: str = "13a") -> None:
        if kind not in OVERLAP_KINDS:
            raise ValueError(f"kind={kind}: takes one of {', '.join(OVERLAP_KINDS)}.")
        if kind == "bleu":
            if tokenize not in BLEU.TOKENIZERS:
                raise ValueError(f"tokenize={tokenize}: takes one of {', '.join(sorted(BLEU.TOKENIZERS))}.")
            self._metric: BLEU | CHRF = BLEU(tokenize=tokenize, effective_order=True)
        else:
            self._metric = CHRF(word_order=2 if kind == "chrf++" else 0)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any
    ) -> list[float]:
        """One score for each completion."""
        pairs = zip(completions, reference, strict=True)
        return [self._metric.sentence_score(text, [truth]).score / 100 for text, truth in pairs]
