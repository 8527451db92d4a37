"""Rewards that measure n-gram overlap with the reference: ROUGE, BLEU and chrF of one text, all in 0..1.

Unlike the corpus metrics of an evaluation these score one completion at a time. ROUGE comes from `rouge_score`, BLEU
and chrF come from sacrebleu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SACREBLEU_KINDS = ("bleu", "chrf", "chrf++")


class Rouge:
    """ROUGE F1 with Porter stemming, 0..1 (Lin 2004).

    Args:
        kind: rouge1, rouge2 (n-grams), rougeL (longest common subsequence), or rougeLsum (the same by sentence, where
            each line is a sentence).

    Raises:
        ValueError: `kind` is none of these.
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
        """Scores of B completions against the column `reference`, [B]."""
        pairs = zip(reference, completions, strict=True)
        return [float(self._scorer.score(truth, text)[self.kind].fmeasure) for truth, text in pairs]


class Overlap:
    """BLEU or chrF of one sentence, 0..1.

    BLEU (Papineni et al. 2002) with sacrebleu's smoothing "exp" and effective order: n-gram orders that the sentence is
    too short for are left out. chrF (Popović 2015) compares characters, chrF++ (Popović 2017) words and word pairs too.

    Args:
        kind: bleu, chrf or chrf++.
        tokenize: sacrebleu's tokenizer for BLEU, e.g. 13a, intl, zh, char, none.

    Raises:
        ValueError: `kind` or `tokenize` is unknown.
    """

    bounds = (0.0, 1.0)

    def __init__(self, kind: Literal["bleu", "chrf", "chrf++"], tokenize: str = "13a") -> None:
        if kind not in SACREBLEU_KINDS:
            raise ValueError(f"kind={kind}: takes one of {', '.join(SACREBLEU_KINDS)}.")
        if kind == "bleu":
            if tokenize not in BLEU.TOKENIZERS:
                raise ValueError(f"tokenize={tokenize}: takes one of {', '.join(sorted(BLEU.TOKENIZERS))}.")
            self._metric: BLEU | CHRF = BLEU(tokenize=tokenize, effective_order=True)
        else:
            self._metric = CHRF(word_order=2 if kind == "chrf++" else 0)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], reference: Sequence[str], **columns: Any
    ) -> list[float]:
        """Scores of B completions against the column `reference`, [B]."""
        pairs = zip(completions, reference, strict=True)
        return [self._metric.sentence_score(text, [truth]).score / 100 for text, truth in pairs]
