"""Typed schema of what keeps a run safe: checkpoints, and the numbers that are watched."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from gkd_rl.setting_fields import choice, number


@dataclass
class CheckpointConfig:
    """Which checkpoints of the run's own stage stay on disk; `trainer.checkpoint_every` says how often one is made."""

    keep: int = number(1)
    best: str | None = MISSING
    best_is: str = choice("highest", "lowest")


@dataclass
class GuardConfig:
    """Numbers that go wrong. All but the first are limits of warnings, null for none."""

    max_skipped: int = number(1)
    negative_divergence: float | None = number(0)
    ratio: float | None = number(0, open_low=True)
    entropy_share: float | None = number(0, 1, open_low=True)
    length_growth: float | None = number(1, open_low=True)
    baseline_steps: int = number(1)
