"""Numbers that go wrong in a step: what is not finite is not learnt from, and what looks wrong is said and counted.

A loss or gradient that is not finite skips its update. What else is looked for has limits in conf/config.yaml (`guard`)
and does nothing but warn: once when it begins, and with how often it happened at the end of the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gkd_rl.errors import DivergedError
from gkd_rl.types import Rollout
from reward_models.composite import Scores

log = logging.getLogger(__name__)
RATIO = "guard/ratio_error"
EMPTY = "guard/empty_share"
OUTSIDE = "guard/reward_outside_share"
BASELINES = ("entropy", "completion_tokens")
ROUNDING = 1e-6  # sacrebleu's best score is 100.00000000000004


@dataclass(frozen=True)
class Limits:
    """What is let pass; None: nothing is looked for.

    Attributes:
        max_skipped: steps in a row that may be skipped before the run stops.
        negative_divergence: a step's divergence may be this far below 0, which no divergence is.
        ratio: of the probabilities of sampled tokens as they are trained and as they were written, the mean distance
            from 1 in the first epoch, where it is to be 1.
        entropy_share: entropy as a share of the baseline's.
        length_growth: completion length as a multiple of the baseline's.
        baseline_steps: the first steps on student rollouts, whose mean is the baseline.
    """

    max_skipped: int | None = None
    negative_divergence: float | None = None
    ratio: float | None = None
    entropy_share: float | None = None
    length_growth: float | None = None
    baseline_steps: int = 1


@dataclass
class Guard:
    """Looks at every step of one stage.

    Attributes:
        limits: see there.
        skipped: steps in which an update was skipped.
        in_a_row: of these, how many until now without another one between them.
        seen: kind of warning -> the steps that it was for.
        baseline: entropy and length of the first steps on student rollouts.
    """

    limits: Limits = Limits()
    skipped: int = 0
    in_a_row: int = 0
    seen: dict[str, list[int]] = field(default_factory=dict)
    baseline: dict[str, list[float]] = field(default_factory=dict)

    def look(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Count and warn of what a finished step (counted from 1) shows.

        Args:
            step: its number.
            metrics: its numbers over all ranks.

        Returns:
            `guard/warnings`: kinds of warnings that this step is one for.
        """
        was_skipped = metrics["guard/skipped"] > 0
        self.skipped += was_skipped
        self.in_a_row = self.in_a_row + 1 if was_skipped else 0
        found = self._found(metrics)
        if was_skipped:
            found["an update was skipped: its loss or gradient was not finite"] = metrics["grad_norm"]
        for kind, value in found.items():
            if kind not in self.seen:
                log.warning("step %d: %s (%.3g)", step, kind, value)
            self.seen.setdefault(kind, []).append(step)
        return {"guard/warnings": float(len(found))}

    def _found(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Kind of warning -> the number that it is about."""
        limits, found = self.limits, {}
        lowest, ratio = limits.negative_divergence, limits.ratio
        if lowest is not None and metrics.get("divergence", 0.0) < -lowest:
            found["the divergence is below 0, which none is"] = metrics["divergence"]
        if metrics.get(EMPTY, 0.0) > 0:
            found["completions without any token, as a share"] = metrics[EMPTY]
        if metrics.get(OUTSIDE, 0.0) > 0:
            found["rewards outside the range that their component declares, as a share"] = metrics[OUTSIDE]
        if ratio is not None and metrics.get(RATIO, 0.0) > ratio:
            found[f"mean |ratio - 1| of the first epoch is above guard.ratio={ratio:g}"] = metrics[RATIO]
        return found | self._away_from_baseline(metrics)

    def _away_from_baseline(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Entropy that has collapsed, length that has exploded; student rollouts only."""
        found: dict[str, float] = {}
        if metrics["student_data"] < 1:
            return found
        first = {name: self.baseline.setdefault(name, []) for name in BASELINES}
        if len(first["entropy"]) < self.limits.baseline_steps:
            for name, values in first.items():
                if math.isfinite(metrics[name]):
                    values.append(metrics[name])
            return found
        entropy, length = (sum(values) / len(values) for values in first.values())
        share, growth = self.limits.entropy_share, self.limits.length_growth
        if share is not None and metrics["entropy"] < share * entropy:
            found[f"entropy below guard.entropy_share={share:g} of its first {entropy:.3g}"] = metrics["entropy"]
        if growth is not None and metrics["completion_tokens"] > growth * length:
            kind = f"completions longer than guard.length_growth={growth:g} times their first {length:.3g} tokens"
            found[kind] = metrics["completion_tokens"]
        return found

    @property
    def exhausted(self) -> bool:
        """Too many steps in a row were skipped."""
        return self.limits.max_skipped is not None and self.in_a_row >= self.limits.max_skipped

    def stop_if_exhausted(self, step: int, kept: str) -> None:
        """End the stage after too many skipped steps in a row.

        Args:
            step: the last one.
            kept: a sentence on what was written for a post-mortem.

        Raises:
            DivergedError: it is so.
        """
        if self.exhausted:
            raise DivergedError(
                f"steps {step - self.in_a_row + 1} to {step} had a loss or gradient that is not finite and were "
                f"skipped (guard.max_skipped={self.limits.max_skipped}). {kept}Lower the learning_rate, or set "
                "student.dtype=float32; a larger guard.max_skipped only waits longer."
            )

    def lines(self, steps: int) -> list[str]:
        """What the end of a run says of its `steps` steps: one line for each kind of warning."""
        return [
            f"warning: {kind}: {len(found)} of {steps} steps, first in step {found[0]}"
            for kind, found in sorted(self.seen.items(), key=lambda item: item[1][0])
        ]

    def state(self) -> dict[str, Any]:
        """All that it has seen, as JSON."""
        return {name: getattr(self, name) for name in ("skipped", "in_a_row", "seen", "baseline")}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()`."""
        for name, value in state.items():
            setattr(self, name, value)


def updates(loss: float, *norms: float) -> bool:
    """Whether an update is to be taken: its loss and all gradient norms are finite."""
    return all(map(math.isfinite, (loss, *norms)))


def text_metrics(
    rollout: Rollout, scores: Scores | None, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Shares of completions without a token, and of those with a reward outside its declared range.

    Args:
        rollout: the text of a step.
        scores: its rewards, None without.
        bounds: lowest and highest reward by component, of those that declare them. Replaced failures are left out.
    """
    empty = {EMPTY: float((~rollout.mask_BT.any(dim=1)).float().mean())}
    if scores is None:
        return empty
    failed = scores.failed or [False] * len(scores.total)
    outside = [False] * len(failed)
    for name, (low, high) in bounds.items():
        for row, value in enumerate(scores.components[name]):
            outside[row] |= not failed[row] and not low - ROUNDING <= value <= high + ROUNDING
    return {**empty, OUTSIDE: sum(outside) / len(outside)}


def ratio_error(written_BT: Tensor, trained_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """Mean |p / p' - 1| over valid tokens of the probabilities as they are trained and as the student writes.

    In the first epoch both are of the same weights and the ratio is to be 1; dropout, or an adapter that is merged with
    other rounding, moves it. Student rollouts of a reward have it at every diagnosed step.
    """
    distance_N = (torch.exp(trained_BT - written_BT) - 1).abs()[mask_BT]
    return {RATIO: float(distance_N.mean())}
