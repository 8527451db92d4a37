"""The chi-square test of samples against exact probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square_p(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of the counts; cells that expect less than five are taken together."""
    total = counts.sum()
    expected = probabilities.flatten().double() * total
    counts = counts.flatten().double()
    small = expected < 5
    cells = torch.cat([expected[~small], expected[small].sum().view(1)])
    seen = torch.cat([counts[~small], counts[small].sum().view(1)])
    cells, seen = cells[cells > 0], seen[cells > 0]
    statistic = ((seen - cells) ** 2 / cells).sum()
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, statistic / 2))
