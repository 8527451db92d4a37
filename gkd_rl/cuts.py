"""Where to cut a sequence of texts into batches: padding against what a batch costs before its first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gkd_rl.stack_cost import StackCost

Numbers = NDArray[np.float64]

# What a forward and backward of one layer costs before its first token, in FLOPs that the device could do meanwhile.
LAYER_FLOPS = {"cpu": 5e8, "cuda": 8e10}


def layer_flops(device: str) -> float:
    """Of a device's type; an unknown one is taken for a GPU."""
    return LAYER_FLOPS.get(device, LAYER_FLOPS["cuda"])


def cheapest_cuts(count: int, costs: Callable[[int], Numbers]) -> list[range]:
    """The pieces of a sequence of `count` whose costs add up to the least (dynamic programming).

    Args:
        count: units in the sequence.
        costs: of the pieces that end with a unit, by their first unit, shape (unit + 1,).
    """
    least, begins = np.zeros(count + 1), np.zeros(count, dtype=int)
    for last in range(count):
        totals = least[: last + 1] + costs(last)
        begins[last] = int(totals.argmin())
        least[last + 1] = totals[begins[last]]
    pieces, end = [], count
    while end > 0:
        pieces.append(range(int(begins[end - 1]), end))
        end = pieces[-1].start
    return pieces[::-1]


def alike(lengths: Sequence[int], cost: StackCost, device: str) -> list[list[int]]:
    """Texts in batches of like length, the cheapest to read once, without backward.

    Args:
        lengths: tokens of each text.
        cost: of the stack that reads them.
        device: its type.

    Returns:
        Numbers of the texts of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    call = layer_flops(device) / 3 * cost.layers / (2 * cost.weights)  # in tokens; a third of both passes
    wide = np.array([lengths[text] for text in order], dtype=float)

    def costs(last: int) -> Numbers:
        return np.arange(last + 1, 0, -1) * wide[last] + call

    return [[order[place] for place in piece] for piece in cheapest_cuts(len(order), costs)]
