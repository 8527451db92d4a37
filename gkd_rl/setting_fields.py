"""Fields of the schema that say what they take."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

from omegaconf import MISSING


def number(low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    """A required number between `low` and `high`; `open_*` excludes the end itself."""
    return field(default=MISSING, metadata={"range": (low, high, open_low, open_high)})


def choice(*choices: str) -> Any:
    """A required text that must be one of `choices`, for what is a name of its own in the data and not an Enum."""
    return field(default=MISSING, metadata={"choices": choices})
