"""Metrics of generated text: ROUGE, Self-BLEU, means by token position, and corpus BLEU and chrF.

ROUGE (Lin 2004) is an `evaluate.Metric` over the package `rouge_score`. The script that `evaluate.load` downloads from
the Hub calls the same package; this one gives its numbers offline. The GKD paper reports ROUGE-2 of greedy decoding and
Self-BLEU of samples at several temperatures.

Corpus BLEU and chrF are sacrebleu's, with its signatures. They are ratios of counts over all sentences, not means of
sentence scores. `CorpusCounts` keeps the counts of every sentence, so that a bootstrap over sentences (Koehn 2004)
gives the interval of a corpus score and of the difference between two systems.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from gkd_rl.outputs.tables import Estimate

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_CITATION = "Lin, C.-Y. ROUGE: A Package for Automatic Evaluation of Summaries. ACL 2004."


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures, 0..1, one reference per prediction.

    `compute(predictions=[...], references=[...], use_stemmer=False, use_aggregator=True)` returns the mean of each
    type, or with `use_aggregator=False` one list of n numbers per type. Nothing is downloaded; the data stay in memory.
    """

    def __init__(self) -> None:
        # The base class creates its cache folder even with keep_in_memory, so it gets a temporary one.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)

    def _info(self) -> evaluate.MetricInfo:
        """The metric's two columns of text."""
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
        """Scores of all pairs.

        Raises:
            ValueError: an option is unknown.
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
    """Raise ValueError for empty lists, lists of different lengths, and entries that are not text."""
    lengths = {name: len(column) for name, column in columns.items()}
    if 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"{metric}: takes lists of one length >= 1; got {lengths}.")
    for name, column in columns.items():
        for index, text in enumerate(column):
            if not isinstance(text, str):
                raise ValueError(f"{metric}: {name}[{index}] is {text!r}; every entry must be text, '' if it is empty.")


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
        ValueError: a list is empty, the lengths differ, or an entry is not text.
    """
    _check_texts("rouge", predictions=predictions, references=references)
    # Arrow accepts valid Unicode only. A lone surrogate separates words in rouge_score, and so does its replacement
    # "?".
    columns = [[text.encode("utf-8", "replace").decode() for text in texts] for texts in (predictions, references)]
    scores = Rouge().compute(
        predictions=columns[0], references=columns[1], use_stemmer=use_stemmer, use_aggregator=False
    )
    assert scores is not None, "evaluate returns None on workers of a distributed metric only"
    return {name: 100.0 * np.asarray(scores[name]) for name in ROUGE_TYPES}


def _bleu(references: list[list[str]], tokens: list[str]) -> float:
    """Smoothed BLEU-4 of one sample against the others of its prompt, 0..1."""
    if not tokens:  # BLEU is undefined: 1 if another sample is empty too, else 0
        return float([] in references)
    order = min(4, len(tokens))
    smoothing = SmoothingFunction().method1
    score: Any = sentence_bleu(references, tokens, weights=(1.0 / order,) * order, smoothing_function=smoothing)
    return float(score)


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Self-BLEU: similarity of the samples of one prompt to each other; lower is more diverse.

    Mean over prompts, then samples, of BLEU-4(sample | the other samples of the prompt), after Zhu et al. 2018
    (Texygen, arXiv 1802.01886). Tokens are separated by white space. An n-gram order without a match counts 0.1 matches
    (Chen and Cherry 2014, method 1). A sample of fewer than four tokens is scored up to the order of its length, so
    that identical samples give 100 at any length. Every prompt has the same weight.

    Args:
        groups: the samples of each prompt, at least two.

    Returns:
        0 (no token in common) to 100 (all samples of every prompt identical).

    Raises:
        ValueError: there is no prompt, or a prompt has fewer than two samples or an entry that is not text.
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
    """Mean over completions at each token position, shape (T,), up to the last position that a tenth of them reach.

    Args:
        rows: for each completion its values at its tokens.
    """
    lengths = np.array([len(row) for row in rows])
    places = int(np.quantile(lengths, 0.9, method="higher"))
    table = np.full((len(rows), places), np.nan)
    for own, row in zip(table, rows, strict=True):
        own[: len(row)] = row[:places]
    return np.nanmean(table, axis=0)


@dataclass(frozen=True)
class CorpusCounts:
    """Counts of N sentences from which a corpus score is computed.

    Attributes:
        counts_NC: C counts of each sentence.
        score: sum of the rows, [C] -> the corpus score, 0..100.
        signature: sacrebleu's description of the score.
    """

    counts_NC: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str

    def estimate(self, samples: int, seed: int) -> Estimate:
        """The corpus score with its 95% bootstrap interval."""
        scores = np.array([self.score(total) for total in _resampled(self.counts_NC, samples, seed)])
        return _estimate(self.score(self.counts_NC.sum(axis=0)), scores, len(self.counts_NC))

    def difference(self, other: CorpusCounts, samples: int, seed: int) -> Estimate:
        """This score minus another system's on the same sentences, in the same order, with its 95% interval."""
        both = np.concatenate([self.counts_NC, other.counts_NC], axis=1)
        width = self.counts_NC.shape[1]
        differences = [
            self.score(total[:width]) - self.score(total[width:]) for total in _resampled(both, samples, seed)
        ]
        own = self.score(self.counts_NC.sum(axis=0)) - self.score(other.counts_NC.sum(axis=0))
        return _estimate(own, np.array(differences), len(self.counts_NC))

    def with_counts(self, counts_NC: np.ndarray) -> CorpusCounts:
        """The same score of other sentences."""
        return replace(self, counts_NC=counts_NC)


def corpus_counts(predictions: Sequence[str], references: Sequence[str]) -> dict[str, CorpusCounts]:
    """Counts of `bleu` and `chrf` for n translations, with one reference each."""
    metrics: dict[str, Any] = {"bleu": BLEU(), "chrf": CHRF()}
    found = {}
    for name, metric in metrics.items():
        metric.corpus_score(["a"], [["a"]])  # sets the number of references in the signature
        # The only access to sentence counts; it is not public, and a test compares the result with `corpus_score`.
        counts = metric._extract_corpus_statistics(list(predictions), [list(references)])
        found[name] = CorpusCounts(np.array(counts, dtype=np.int64), _scorer(metric), str(metric.get_signature()))
    return found


def _scorer(metric: Any) -> Callable[[np.ndarray], float]:
    return lambda total: float(metric._compute_score_from_stats(total.tolist()).score)


def _resampled(counts_NC: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums of `samples` resamples of the rows, (samples, C)."""
    generator, count = np.random.default_rng(seed), len(counts_NC)
    times = generator.multinomial(count, np.full(count, 1 / count), size=samples)  # number of draws of each row
    return times @ counts_NC


def _estimate(value: float, resampled: np.ndarray, count: int) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975]) if count > 1 else (float("nan"), float("nan"))
    return Estimate(value, float(low), float(high), count)
