"""Splits of generated rows: train, validation and test are disjoint by construction.

A generator draws a signature, which names what a row is about; the CRC-32 of the signature decides the split. All draws
come from Python's Mersenne Twister, so that rows are the same on every machine.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Hashable
from typing import TypeVar

SPLITS = {"test": (0, 1), "validation": (1, 2), "train": (2, 10)}  # first and last tenth of the signatures
MAX_TRIES = 1000  # draws in a row without a new item, after which there are no more

Item = TypeVar("Item")


def split_of(signature: str) -> str:
    """The split of a signature, by its CRC-32."""
    tenth = zlib.crc32(signature.encode()) % 10
    return next(name for name, (low, high) in SPLITS.items() if low <= tenth < high)


def distinct(
    draw: Callable[[random.Random], tuple[str, Callable[[], Item]]],
    identity: Callable[[Item], Hashable],
    split: str,
    size: int,
    seed: int,
) -> list[Item]:
    """`size` distinct items of `split`; a longer list begins with the shorter one.

    Args:
        draw: random generator -> signature, and a function that makes its item with further draws.
        identity: key of an item that no two items share.
        split: "train", "validation" or "test".
        size: number of items.
        seed: of the whole data set.

    Raises:
        ValueError: the generator has fewer distinct items.
    """
    rng = random.Random(zlib.crc32(f"{seed} {split}".encode()))
    items: list[Item] = []
    seen: set[Hashable] = set()
    tries = 0
    while len(items) < size:
        signature, make = draw(rng)
        tries += 1
        if tries > MAX_TRIES:
            raise ValueError(
                f"the generator has {len(items)} distinct {split} rows of this kind, and {size} are needed."
            )
        if split_of(signature) != split:
            continue
        item = make()
        if identity(item) not in seen:
            seen.add(identity(item))
            items.append(item)
            tries = 0
    return items
