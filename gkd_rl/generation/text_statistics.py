"""Statistics of a completion's text: repetition, and how much of it is copied from its prompt. Not in the paper."""

from __future__ import annotations


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
    """Share of a text's n-grams that occur in its source, over whitespace tokens.

    1 minus the share of novel n-grams of See et al. 2017 (arXiv 1704.04368).

    Args:
        text: any text.
        source: the text that it may be copied from.
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
        raise ValueError(f"n={n}: the n of an n-gram is an integer >= 1.")
    tokens = text.split()
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
