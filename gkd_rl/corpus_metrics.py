"""BLEU and chrF of a corpus through sacrebleu, with its signatures; pure functions of text.

Both are ratios of counts over all sentences, no means of sentences' scores. Every sentence's counts are kept, so that a
bootstrap over sentences (Koehn 2004) gives the interval of the corpus score and of the difference between two systems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from gkd_rl.uncertainty import Estimate

NAMES = ("bleu", "chrf")


@dataclass(frozen=True)
class CorpusCounts:
    """What n sentences add to a corpus score.

    Attributes:
        counts_NC: one row for each sentence.
        score: of the sum of rows, 0..100.
        signature: sacrebleu's, what the number means.
    """

    counts_NC: np.ndarray
    score: Callable[[np.ndarray], float]
    signature: str

    def estimate(self, samples: int, seed: int) -> Estimate:
        """The corpus score with its 95% bootstrap interval."""
        scores = np.array([self.score(total) for total in _resampled(self.counts_NC, samples, seed)])
        return _estimate(self.score(self.counts_NC.sum(axis=0)), scores, len(self.counts_NC))

    def difference(self, other: CorpusCounts, samples: int, seed: int) -> Estimate:
        """This system's score minus the other's on the same sentences, in the same order."""
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
    """`bleu` and `chrf` of n translations, one reference each."""
    metrics: dict[str, Any] = {"bleu": BLEU(), "chrf": CHRF()}
    found = {}
    for name, metric in metrics.items():
        metric.corpus_score(["a"], [["a"]])  # the signature names the number of references, which it learns here
        # Not public, but the one place where sentences' counts of either metric are; a test holds it to `corpus_score`.
        counts = metric._extract_corpus_statistics(list(predictions), [list(references)])
        found[name] = CorpusCounts(np.array(counts, dtype=np.int64), _scorer(metric), str(metric.get_signature()))
    return found


def _scorer(metric: Any) -> Callable[[np.ndarray], float]:
    return lambda total: float(metric._compute_score_from_stats(total.tolist()).score)


def _resampled(counts_NC: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums of `samples` resamples of the rows, (samples, C)."""
    generator, count = np.random.default_rng(seed), len(counts_NC)
    times = generator.multinomial(count, np.full(count, 1 / count), size=samples)  # how often each row is drawn
    return times @ counts_NC


def _estimate(value: float, resampled: np.ndarray, count: int) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975]) if count > 1 else (float("nan"), float("nan"))
    return Estimate(value, float(low), float(high), count)
