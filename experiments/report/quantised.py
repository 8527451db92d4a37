"""Curves as few characters: buckets that keep mean, lowest and highest, and 16 bits a value between the curve's bounds.

A curve of n values is kept whole while n <= 3 * points; a longer one becomes `points` buckets of consecutive values,
each with its mean (for smoothing), minimum and maximum (so that no spike is lost). Rounding to 16 bits moves a value by
at most 1/131,070 of the curve's range.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

LEVELS = 65535
FEWEST, MOST = 40, 400
CHARACTERS = 8_000_000  # for all curves of a page
PER_POINT = 8  # three values of two bytes, in base64


def points_for(curves: int) -> int:
    """How many buckets each of so many curves may have, for the page to stay below its size."""
    return max(FEWEST, min(MOST, CHARACTERS // (PER_POINT * max(curves, 1))))


def is_whole(count: int, points: int) -> bool:
    """Whether a curve of `count` values is kept as it is."""
    return count <= 3 * points


def bucket_edges(count: int, points: int) -> np.ndarray:
    """First value of each bucket and the end, shape (points + 1,)."""
    return np.linspace(0, count, points + 1).round().astype(int)


def bucketed(values: np.ndarray, points: int) -> np.ndarray:
    """Values as they are, shape (1, n), or mean, minimum and maximum of each bucket, shape (3, points)."""
    if is_whole(values.size, points):
        return values[None, :]
    starts = bucket_edges(values.size, points)
    sums = np.add.reduceat(values, starts[:-1])
    return np.stack(
        [sums / np.diff(starts), np.minimum.reduceat(values, starts[:-1]), np.maximum.reduceat(values, starts[:-1])]
    )


def grid(steps: np.ndarray, points: int) -> dict[str, Any]:
    """Steps of the values, or the mean step of each bucket: {start, by, count} where they are evenly spaced."""
    whole = is_whole(steps.size, points)
    places = bucketed(steps.astype(float), points)[0]
    gaps = np.diff(places)
    if gaps.size and np.allclose(gaps, gaps[0], rtol=1e-9):
        where: Any = {"start": float(places[0]), "by": float(gaps[0]), "count": int(places.size)}
    else:
        where = [round(float(place), 3) for place in places]
    return {"steps": where, "whole": whole, "values": int(steps.size)}


def packed(values: np.ndarray, points: int) -> list[Any]:
    """[lowest, highest, base64 of little-endian 16-bit levels]; without levels where all values are one."""
    kept = bucketed(values, points)
    low, high = float(kept.min()), float(kept.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # a mean of equal values is off by its rounding
        return [low, high, ""]
    levels = ((kept - low) / (high - low) * LEVELS).round().astype("<u2")
    return [low, high, base64.b64encode(levels.tobytes()).decode("ascii")]


def unpacked(curve: list[Any], count: int, whole: bool) -> np.ndarray:
    """What `packed` kept: shape (1, count) or (3, count)."""
    low, high, text = curve
    rows = 1 if whole else 3
    if not text:
        return np.full((rows, count), low)
    levels = np.frombuffer(base64.b64decode(text), "<u2").reshape(rows, count)
    return low + levels / LEVELS * (high - low)
