"""Metrics of generated text: ROUGE, repetition, Self-BLEU. Pure functions of text.

`evaluate.load` fetches its scripts from the Hub, so ROUGE is our own `evaluate.Metric` over the package `rouge_score`,
which the script on the Hub calls as well: the numbers are those of Lin (2004) as `rouge_score` computes them, and work
offline. The paper reports ROUGE-2 of greedy decoding and Self-BLEU of samples at several temperatures.
The statistics live in `uncertainty.py` and are offered here too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from gkd_rl.uncertainty import Estimate, bootstrap_interval, estimate, paired_difference

__all__ = [
    "Estimate",
    "Rouge",
    "bootstrap_interval",
    "copy_rate",
    "estimate",
    "paired_difference",
    "repetition_rate",
    "rouge_scores",
    "self_bleu",
]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_CITATION = "Lin, C.-Y. ROUGE: A Package for Automatic Evaluation of Summaries. ACL 2004."


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures, 0..1, one reference per prediction.

    `compute(predictions=[...], references=[...], use_stemmer=False, use_aggregator=True)` returns the mean of each
    type, or with `use_aggregator=False` one list of n numbers per type. Nothing is downloaded; the data stay in memory.
    """

    def __init__(self) -> None:
        # The base class creates its cache folder even when it keeps everything in memory: give it one that goes away.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)

    def _info(self) -> evaluate.MetricInfo:
        """Two columns of text."""
        return evaluate.MetricInfo(
            description="ROUGE F-measures over rouge_score, offline.",
            citation=_CITATION,
            inputs_description="predictions and references: lists of text of one length.",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(
        self,
        *,
        predictions: Sequence[str] | None = None,
        references: Sequence[str] | None = None,
        use_stemmer: bool = False,
        use_aggregator: bool = True,
        **unknown: Any,
    ) -> dict[str, Any]:
        """Score pair by pair.

        Raises:
            ValueError: on an option that does not exist.
        """
        if unknown:
            raise ValueError(f"rouge: {', '.join(unknown)}: options are use_stemmer and use_aggregator.")
        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=use_stemmer)
        pairs = zip(references or [], predictions or [], strict=True)
        scores = [scorer.score(reference, prediction) for reference, prediction in pairs]
        columns = {name: [score[name].fmeasure for score in scores] for name in ROUGE_TYPES}
        if use_aggregator:
            return {name: float(np.mean(column)) for name, column in columns.items()}
        return columns


def _check_texts(metric: str, **columns: Sequence[str]) -> None:
    """Refuse empty lists, lists of different lengths and entries that are not text."""
    lengths = {name: len(column) for name, column in columns.items()}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"{metric}: takes lists of one length >= 1; got {lengths}.")
    for name, column in columns.items():
        for index, text in enumerate(column):
            if not isinstance(text, str):
                raise ValueError(f"{metric}: {name}[{index}] is {text!r}; every entry is text, at least ''.")


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], use_stemmer: bool = False
) -> dict[str, np.ndarray]:
    """ROUGE F-measure of every pair, in percent (0..100), through `Rouge`.

    An empty prediction scores 0, as in `rouge_score`.

    Args:
        predictions: n texts.
        references: n texts.
        use_stemmer: Porter stemmer on words of more than three letters.

    Returns:
        `rouge1`, `rouge2` and `rougeL`, each float64 of shape (n,).

    Raises:
        ValueError: if a list is empty, the lengths differ or an entry is not text.
    """
    _check_texts("rouge", predictions=predictions, references=references)
    # Arrow takes valid Unicode only. A lone surrogate separates words for rouge_score, and so does its '?'.
    columns = [[text.encode("utf-8", "replace").decode() for text in texts] for texts in (predictions, references)]
    scores = Rouge().compute(
        predictions=columns[0], references=columns[1], use_stemmer=use_stemmer, use_aggregator=False
    )
    assert scores is not None, "evaluate returns None on workers of a distributed metric only"
    return {name: 100.0 * np.asarray(scores[name]) for name in ROUGE_TYPES}


def repetition_rate(text: str, n: int = 3) -> float:
    """Share of n-grams that repeat an earlier one: 1 - distinct / total, over whitespace tokens.

    Welleck et al. 2019 (arXiv 1908.04319), seq-rep-n.

    Args:
        text: any text.
        n: tokens per n-gram, >= 1.

    Returns:
        0 (no repetition, or fewer than n tokens) up to just below 1.

    Raises:
        ValueError: if n < 1.
    """
    grams = _ngrams(text, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def copy_rate(text: str, source: str, n: int = 2) -> float:
    """Share of a text's n-grams that stand in its source, over whitespace tokens: how much is copied word for word.

    The novel n-grams of See et al. 2017 (arXiv 1704.04368), counted from the other side.

    Args:
        text: any text.
        source: what it may be copied from.
        n: tokens per n-gram, >= 1.

    Returns:
        0 (nothing copied, or fewer than n tokens) to 1.

    Raises:
        ValueError: if n < 1.
    """
    grams, there = _ngrams(text, n), set(_ngrams(source, n))
    return sum(gram in there for gram in grams) / len(grams) if grams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n={n}: an n-gram takes a whole number of words >= 1.")
    tokens = text.split()
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def _bleu(references: list[list[str]], tokens: list[str]) -> float:
    """Smoothed BLEU-4 of one sample against the others of its prompt, 0..1."""
    if not tokens:  # BLEU is not defined for an empty text: two empty samples are identical, all else has no overlap
        return float([] in references)
    order = min(4, len(tokens))
    smoothing = SmoothingFunction().method1
    score: Any = sentence_bleu(references, tokens, weights=(1.0 / order,) * order, smoothing_function=smoothing)
    return float(score)


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Self-BLEU: how much the samples of one prompt resemble one another; lower is more diverse.

    mean over prompts, then samples, of BLEU-4(sample | the prompt's other samples). Zhu et al. 2018 (Texygen,
    arXiv 1802.01886). Whitespace tokens; n-gram orders without a match count 0.1 matches (Chen and Cherry 2014,
    method 1); a sample of fewer than four tokens is scored up to its own length, so that identical samples give 100 at
    any length. Each prompt weighs the same.

    Args:
        groups: for each prompt its samples, at least two.

    Returns:
        0 (no token in common) to 100 (all samples of every prompt identical).

    Raises:
        ValueError: if there is no prompt, or a prompt has fewer than two samples or an entry that is not text.
    """
    if len(groups) == 0:
        raise ValueError("self_bleu: takes the samples of at least one prompt; got none.")
    means = []
    for index, samples in enumerate(groups):
        if isinstance(samples, str) or len(samples) < 2:
            raise ValueError(f"self_bleu: prompt {index} has {samples!r}; each prompt takes a list of >= 2 samples.")
        _check_texts(f"self_bleu, prompt {index}", samples=samples)
        tokens = [text.split() for text in samples]
        means.append(np.mean([_bleu(tokens[:i] + tokens[i + 1 :], sample) for i, sample in enumerate(tokens)]))
    return 100.0 * float(np.mean(means))


def by_position(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over completions at each token's place, shape (T,); up to the last place that a tenth of them reach.

    Args:
        rows: values at the tokens of each completion, its length each.
    """
    lengths = np.array([len(row) for row in rows])
    places = int(np.quantile(lengths, 0.9, method="higher"))
    table = np.full((len(rows), places), np.nan)
    for own, row in zip(table, rows, strict=True):
        own[: len(row)] = row[:places]
    return np.nanmean(table, axis=0)
