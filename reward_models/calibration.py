"""How good a classifier's probabilities are on rows that it was not trained on, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BINS = 10
RESAMPLES = 500


def accuracy(labels_N: Array, probabilities_N: Array) -> float:
    """Share of rows on the right side of 1/2."""
    return float(np.mean((probabilities_N > 0.5) == (labels_N == 1)))


def auc(labels_N: Array, scores_N: Array) -> float:
    """P(score of a positive > score of a negative), a tie counting half: the Mann-Whitney statistic.

    nan without a positive or a negative.
    """
    _, inverse_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]  # from 1; ties share their mean
    positives = int(labels_N.sum())
    pairs = positives * (len(labels_N) - positives)
    return float((ranks_N[labels_N == 1].sum() - positives * (positives + 1) / 2) / pairs) if pairs else float("nan")


def brier(labels_N: Array, probabilities_N: Array) -> float:
    """Mean squared error of the probabilities (Brier 1950)."""
    return float(np.mean((probabilities_N - labels_N) ** 2))


def expected_calibration_error(labels_N: Array, probabilities_N: Array) -> float:
    """Σ_bins share · |mean probability - share of positives|, over 10 bins of equal width (Guo et al. 2017, Eq. 3)."""
    bins_N = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins_N, weights=probabilities_N - labels_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "auc": auc,
    "expected_calibration_error": expected_calibration_error,
    "brier": brier,
}


def report(
    labels: Sequence[int], probabilities: Sequence[float], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every measure with its 95% percentile interval over resampled documents.

    Args:
        labels: 1 or 0, [N].
        probabilities: of 1, [N].
        groups: what each row is about, [N]: rows of one document are drawn together.
        seed: of the resampling.
    """
    labels_N, probabilities_N = np.asarray(labels, float), np.asarray(probabilities, float)
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    rows = [np.flatnonzero(group_N == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    found: dict[str, Any] = {"rows": len(labels_N), "documents": len(names), "positives": int(labels_N.sum())}
    for name, measure in MEASURES.items():
        resampled = [measure(labels_N[draw], probabilities_N[draw]) for draw in draws]
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
        found[name] = {"mean": measure(labels_N, probabilities_N), "low": float(low), "high": float(high)}
    return found
