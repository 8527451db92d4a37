"""The metrics of a step, and the guard that checks them.

Functions compute the metrics that metrics.jsonl has for every step. `all_finite` decides whether an update is made: a
step with a loss or gradient that is not finite is skipped. `Guard` checks the metrics against the limits of
conf/config.yaml (`guard`). It never changes the training: it warns when a condition first holds, counts the steps, and
ends the run after too many skipped steps in a row.
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
from gkd_rl.generation.text_statistics import repetition_rate
from gkd_rl.losses.objective import StepTotals
from gkd_rl.types import LossTerms, Rollout, Source, TokenTerms
from reward_models.composite import Scores

log = logging.getLogger(__name__)
RATIO = "guard/ratio_error"
EMPTY = "guard/empty_share"
OUTSIDE = "guard/reward_outside_share"
BASELINES = ("entropy", "completion_tokens")  # metrics that are compared with the run's first steps
ROUNDING = 1e-6  # beyond a reward's range; sacrebleu's best score is 100.00000000000004


def loss_metrics(losses: LossTerms, terms: TokenTerms, alpha: float, totals: StepTotals) -> dict[str, Tensor]:
    """A micro-batch's share of loss, both terms, entropy and the share of clipped tokens; scalars to be summed."""
    values = {
        "loss": losses.loss(alpha).detach(),
        "entropy": terms.entropy_BT.sum() / totals.tokens,
        "clipped_share": losses.clipped_tokens / totals.tokens,
    }
    if losses.reward is not None:
        values["policy_gradient"] = losses.reward.detach()
    if losses.divergence_value is not None:
        values["divergence"] = losses.divergence_value
    return values


def rollout_metrics(
    rollout: Rollout, totals: StepTotals, scores: Scores | None, *, teacher_scored: bool
) -> dict[str, float]:
    """Source, lengths and repetition of the completions, tokens that were processed, and rewards.

    Args:
        rollout: of this rank.
        totals: of the whole step.
        scores: rewards; None without a reward, which then has no metric.
        teacher_scored: the teacher computed the completions.
    """
    source, tokens = rollout.source, float(totals.tokens)
    metrics = {
        "student_data": float(source is Source.student),
        "completion_tokens": float(rollout.mask_BT.sum(dim=1).float().mean()),
        "truncated_share": float(rollout.truncated_B.float().mean()),
        "repetition": sum(map(repetition_rate, rollout.texts)) / len(rollout.texts),
        "tokens/student_trained": tokens,
        "tokens/student_generated": tokens if source is Source.student else 0.0,
        "tokens/teacher_generated": tokens if source is Source.teacher else 0.0,
        "tokens/teacher_scored": tokens if teacher_scored else 0.0,
    }
    if scores is not None:
        total = torch.tensor(scores.total)
        metrics |= {"reward/mean": float(total.mean()), "reward/std": float(total.std(correction=0))}
        if scores.failed is not None:
            metrics["reward/failed"] = sum(scores.failed) / len(scores.failed)
        metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in scores.components.items()}
    return metrics


def guard_metrics(
    rollout: Rollout, scores: Scores | None, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Share of completions without a token, and share with a reward outside its declared range.

    Args:
        rollout: the completions.
        scores: their rewards, or None.
        bounds: lowest and highest reward by component, of components that declare a range. Replaced failures of a
            reward are not counted.
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


def ratio_error(sampling_logp_BT: Tensor, training_logp_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """Mean |ρ - 1| over valid tokens, ρ = p / p' of the probabilities in training and in sampling.

    In the first epoch both have the same weights, so ρ should be 1. Dropout moves it, and so does an adapter whose
    merged weights are rounded differently.

    Args:
        sampling_logp_BT: log-probabilities in evaluation mode, with an adapter merged.
        training_logp_BT: log-probabilities of the training forward pass.
        mask_BT: valid tokens.
    """
    distance_N = (torch.exp(training_logp_BT - sampling_logp_BT) - 1).abs()[mask_BT]
    return {RATIO: float(distance_N.mean())}


def all_finite(loss: float, *norms: float) -> bool:
    """Whether the loss and all gradient norms are finite: the condition of an optimiser update."""
    return all(map(math.isfinite, (loss, *norms)))


@dataclass(frozen=True)
class GuardLimits:
    """Limits of the guard; None switches a check off.

    Attributes:
        max_skipped: number of steps in a row that may be skipped; then the run ends.
        negative_divergence: how far a step's divergence may be below 0 (rounding).
        ratio: highest `ratio_error`.
        entropy_share: lowest entropy, as a share of the baseline's.
        length_growth: highest mean completion length, as a multiple of the baseline's.
        baseline_steps: number of first steps on student rollouts whose mean is the baseline.
    """

    max_skipped: int | None = None
    negative_divergence: float | None = None
    ratio: float | None = None
    entropy_share: float | None = None
    length_growth: float | None = None
    baseline_steps: int = 1


@dataclass
class Guard:
    """Checks every step of one training stage.

    Attributes:
        limits: see `GuardLimits`.
        skipped: number of steps with a skipped update.
        in_a_row: number of skipped steps up to now without another step between them.
        seen: kind of warning -> the steps that it was given for.
        baseline: entropy and completion length of the first steps on student rollouts.
    """

    limits: GuardLimits = GuardLimits()
    skipped: int = 0
    in_a_row: int = 0
    seen: dict[str, list[int]] = field(default_factory=dict)
    baseline: dict[str, list[float]] = field(default_factory=dict)

    def check(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Count and log the warnings of a finished step.

        Args:
            step: its number, from 1.
            metrics: its metrics over all ranks.

        Returns:
            `guard/warnings`: number of kinds of warnings for this step.
        """
        was_skipped = metrics["guard/skipped"] > 0
        self.skipped += was_skipped
        self.in_a_row = self.in_a_row + 1 if was_skipped else 0
        found = self._warnings(metrics)
        if was_skipped:
            found["an update was skipped: its loss or gradient was not finite"] = metrics["grad_norm"]
        for kind, value in found.items():
            if kind not in self.seen:
                log.warning("step %d: %s (%.3g)", step, kind, value)
            self.seen.setdefault(kind, []).append(step)
        return {"guard/warnings": float(len(found))}

    def _warnings(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Kind of warning -> the value that exceeds its limit."""
        limits, found = self.limits, {}
        lowest, ratio = limits.negative_divergence, limits.ratio
        if lowest is not None and metrics.get("divergence", 0.0) < -lowest:
            found["the divergence is below 0, which is impossible"] = metrics["divergence"]
        if metrics.get(EMPTY, 0.0) > 0:
            found["completions without any token, as a share"] = metrics[EMPTY]
        if metrics.get(OUTSIDE, 0.0) > 0:
            found["rewards outside the range that their component declares, as a share"] = metrics[OUTSIDE]
        if ratio is not None and metrics.get(RATIO, 0.0) > ratio:
            found[f"mean |ratio - 1| of the first epoch is above guard.ratio={ratio:g}"] = metrics[RATIO]
        return found | self._baseline_warnings(metrics)

    def _baseline_warnings(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Collapsed entropy and exploded length, relative to the baseline; for student rollouts only."""
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
        """Whether `max_skipped` steps in a row were skipped."""
        return self.limits.max_skipped is not None and self.in_a_row >= self.limits.max_skipped

    def stop_if_exhausted(self, step: int, kept: str) -> None:
        """End the stage after too many skipped steps in a row.

        Args:
            step: the last one.
            kept: a sentence for the message on what was saved.

        Raises:
            DivergedError: `exhausted`.
        """
        if self.exhausted:
            raise DivergedError(
                f"steps {step - self.in_a_row + 1} to {step} had a loss or gradient that is not finite and were "
                f"skipped (guard.max_skipped={self.limits.max_skipped}). {kept}Lower the learning_rate, or set "
                "student.dtype=float32; a larger guard.max_skipped only waits longer."
            )

    def summary_lines(self, steps: int) -> list[str]:
        """One line for each kind of warning, for the end of a run of `steps` steps."""
        return [
            f"warning: {kind}: {len(found)} of {steps} steps, first in step {found[0]}"
            for kind, found in sorted(self.seen.items(), key=lambda item: item[1][0])
        ]

    def state(self) -> dict[str, Any]:
        """Its state as JSON, for a checkpoint."""
        return {name: getattr(self, name) for name in ("skipped", "in_a_row", "seen", "baseline")}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a `state()`."""
        for name, value in state.items():
            setattr(self, name, value)
