"""Rows of a generator, shared out to train, validation and test by what they are about."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Hashable
from typing import TypeVar

SPLITS = {"test": (0, 1), "validation": (1, 2), "train": (2, 10)}  # tenths of the space of signatures
TRIES = 1000  # draws in a row without a new item: the space is used up

Item = TypeVar("Item")


def split_of(signature: str) -> str:
    """The split that owns a signature, by its CRC-32."""
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
        draw: a signature, and what writes its item; both draw from Python's Mersenne Twister, the same everywhere.
        identity: what must differ between items.
        split: "train", "validation" or "test".
        size: number of items.
        seed: of the whole data set.

    Raises:
        ValueError: there are not so many.
    """
    rng = random.Random(zlib.crc32(f"{seed} {split}".encode()))
    items: list[Item] = []
    seen: set[Hashable] = set()
    tries = 0
    while len(items) < size:
        signature, write = draw(rng)
        tries += 1
        if tries > TRIES:
            raise ValueError(f"the generator finds {len(items)} {split} rows of this kind and no more, not {size}.")
        if split_of(signature) != split:
            continue
        item = write()
        if identity(item) not in seen:
            seen.add(identity(item))
            items.append(item)
            tries = 0
    return items
