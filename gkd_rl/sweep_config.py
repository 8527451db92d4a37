"""Typed schema of a sweep's own settings."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class SweepConfig:
    """What a sweep is told of each run, and the folder of a broken sweep that is to be finished."""

    objectives: list[str] = MISSING
    resume: str | None = MISSING
