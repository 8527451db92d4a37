"""Means with percentile bootstrap intervals over examples.

θ = mean(v₁..v_n). The interval has the (1 - level)/2 and (1 + level)/2 quantiles of the means of `samples` resamples of
n values with replacement (Efron 1979, percentile method). It covers the uncertainty from the choice of test examples,
not the spread over training seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gkd_rl.outputs.tables import Estimate

_CHUNK_DRAWS = 2_000_000  # 16 MB of indices at one time, for any size of the test set


def _checked(values: np.ndarray | Sequence[float], metric: str) -> np.ndarray:
    """`values` as float64, shape (n,).

    Raises:
        ValueError: they are empty, not one-dimensional, or not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{metric}: takes a non-empty one-dimensional array of values; got shape {array.shape}.")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{metric}: value {bad} of {array.size} is {array[bad]}; every example needs a finite value.")
    return array


def bootstrap_interval(
    values: np.ndarray | Sequence[float], samples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one value per example, shape (n,), n >= 1.
        samples: resamples, >= 1; 1000 is usual.
        seed: of the resampling; equal seeds give equal intervals.
        level: nominal coverage, in (0, 1).

    Returns:
        (low, high); (nan, nan) for n = 1, where there is nothing to resample.

    Raises:
        ValueError: if `values` is empty or holds NaN or inf, or `samples` or `level` is out of range.
    """
    array = _checked(values, "bootstrap_interval")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_interval: samples={samples}, level={level}; samples takes >= 1 and level a number in (0, 1)."
        )
    if array.size == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    rows = max(1, _CHUNK_DRAWS // array.size)
    for start in range(0, samples, rows):
        stop = min(start + rows, samples)
        means[start:stop] = array[generator.integers(array.size, size=(stop - start, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values: np.ndarray | Sequence[float], samples: int, seed: int) -> Estimate:
    """Mean of `values`, shape (n,), with its 95% bootstrap interval.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    array = _checked(values, "estimate")
    low, high = bootstrap_interval(array, samples, seed)
    return Estimate(float(array.mean()), low, high, int(array.size))


def paired_difference(
    a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float], samples: int, seed: int
) -> Estimate:
    """Mean of a - b over the same examples, with its 95% bootstrap interval.

    Pairing removes the variance that both share (hard examples are hard for both), so that two models can differ
    significantly although their own intervals overlap.

    Args:
        a: one value per example, shape (n,).
        b: values of the other model on the same examples in the same order, shape (n,).
        samples: resamples.
        seed: of the resampling.

    Returns:
        The difference as an estimate; it is significant if low and high have the same sign.

    Raises:
        ValueError: if the lengths differ, or as `bootstrap_interval`.
    """
    first, second = _checked(a, "paired_difference"), _checked(b, "paired_difference")
    if first.size != second.size:
        raise ValueError(
            f"paired_difference: a has {first.size} values and b has {second.size}; both take one per example."
        )
    return estimate(first - second, samples, seed)
