"""The Pareto front of points in two metrics and the area that it dominates (Zitzler and Thiele 1998)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pareto_front(points_NX: np.ndarray) -> np.ndarray:
    """Which points no other one dominates, shape (N,), bool.

    Args:
        points_NX: shape (N, 2), higher is better on both axes; a point dominates another one if it is as good on both
            and better on one.
    """
    as_good = (points_NX[:, None] >= points_NX[None]).all(2)
    better = as_good & (points_NX[:, None] > points_NX[None]).any(2)
    return np.logical_not(better.any(axis=0))


def hypervolume(points_NX: np.ndarray, worst: Sequence[float], best: Sequence[float]) -> float:
    """Area that the points dominate above the corner `worst`, as a share of the box from `worst` to `best`."""
    above = np.clip(points_NX - np.asarray(worst), 0, None)
    front = above[pareto_front(above)]
    xs, ys = front[np.argsort(front[:, 0])].T
    return float((np.diff(xs, prepend=0) * ys).sum() / np.prod(np.asarray(best) - np.asarray(worst)))
