"""Rows that reward models are trained on, and the quality of a trained model on held-out rows.

Rows come from files or a generator, are checked, and are split by document, so that training and held-out rows share
none. The quality report has accuracy, AUC, calibration error and Brier score with bootstrap intervals over documents.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
Array = NDArray[np.float64]
LABEL_NAMES = {"1": 1, "entailment": 1, "0": 0, "not_entailment": 0, "neutral": 0, "contradiction": 0}
BINS = 10  # of the calibration error
RESAMPLES = 500  # of the bootstrap


def read_files(files: Sequence[str]) -> list[Row]:
    """Rows of .jsonl and .csv files.

    Raises:
        ValueError: a file is missing, of another kind, or unreadable.
    """
    rows: list[Row] = []
    for name in files:
        file = Path(name).expanduser()
        if not file.is_file() or file.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"files={name}: takes .jsonl or .csv files that exist.")
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows += csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, stream)
        except ValueError as error:
            raise ValueError(f"files={name}: it cannot be read ({error}).") from error
    return rows


def checked(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows, with labels as 0 or 1 if `columns` has "label".

    Args:
        rows: dicts.
        columns: what every row must have.

    Raises:
        ValueError: there are no rows, a row lacks a column, or its label is not in `LABEL_NAMES`.
    """
    if not rows:
        raise ValueError("there are no rows: set files=[rows.jsonl], or rows to a generator.")
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in columns if not isinstance(row, Mapping) or row.get(name) is None]
        if lacking:
            raise ValueError(f"row {number} has no {', '.join(lacking)}: rows take the columns {', '.join(columns)}.")
        if "label" in columns and str(row["label"]).casefold() not in LABEL_NAMES:
            raise ValueError(f"row {number}: label={row['label']!r}: takes one of {', '.join(LABEL_NAMES)}.")
    if "label" not in columns:
        return list(rows)
    return [{**row, "label": LABEL_NAMES[str(row["label"]).casefold()]} for row in rows]


def split(
    rows: Sequence[Row], document: Callable[[Row], str], held_out: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows; no document is in both.

    Args:
        rows: all rows.
        document: the document of a row.
        held_out: share of the documents, in (0, 1).
        seed: of the random choice of documents.

    Raises:
        ValueError: one of the two would be empty.
    """
    documents = sorted({document(row) for row in rows})
    random.Random(seed).shuffle(documents)
    aside = set(documents[: round(held_out * len(documents))])
    if not 0 < len(aside) < len(documents):
        raise ValueError(
            f"held_out={held_out} of {len(documents)} documents leaves nothing to train on or nothing to measure on; "
            "set it to a share between 0 and 1, or give more documents."
        )
    return [row for row in rows if document(row) not in aside], [row for row in rows if document(row) in aside]


def accuracy(labels_N: Array, probabilities_N: Array) -> float:
    """Share of rows whose probability is on the right side of 1/2."""
    return float(np.mean((probabilities_N > 0.5) == (labels_N == 1)))


def auc(labels_N: Array, scores_N: Array) -> float:
    """P(score of a positive > score of a negative), ties counted half: the Mann-Whitney statistic.

    nan without a positive or without a negative.
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


def quality_report(
    labels: Sequence[int], probabilities: Sequence[float], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every measure with its 95% percentile bootstrap interval over documents.

    Args:
        labels: 0 or 1, [N].
        probabilities: of label 1, [N].
        groups: the document of each row, [N]; the rows of one document are resampled together.
        seed: of the resampling.

    Returns:
        Counts of rows, documents and positives; name of a measure -> its mean, low and high.
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
