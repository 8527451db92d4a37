"""The numbers of a step that come from its text and its losses."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd_rl.metrics import repetition_rate
from gkd_rl.objective import StepTotals
from gkd_rl.types import LossTerms, Rollout, Source, TokenTerms
from reward_models.composite import Scores


def loss_metrics(losses: LossTerms, terms: TokenTerms, alpha: float, totals: StepTotals) -> dict[str, Tensor]:
    """What a micro-batch adds to loss, both terms, entropy and the share of clipped tokens."""
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


def rollout_metrics(rollout: Rollout, totals: StepTotals, scores: Scores | None, *, taught: bool) -> dict[str, float]:
    """Whose text it was, how long, how repetitive, what it cost in tokens, and its rewards if it had any."""
    source, tokens = rollout.source, float(totals.tokens)
    metrics = {
        "student_data": float(source is Source.student),
        "completion_tokens": float(rollout.mask_BT.sum(dim=1).float().mean()),
        "truncated_share": float(rollout.truncated_B.float().mean()),
        "repetition": sum(map(repetition_rate, rollout.texts)) / len(rollout.texts),
        "tokens/student_trained": tokens,
        "tokens/student_generated": tokens if source is Source.student else 0.0,
        "tokens/teacher_generated": tokens if source is Source.teacher else 0.0,
        "tokens/teacher_scored": tokens if taught else 0.0,
    }
    if scores is not None:
        total = torch.tensor(scores.total)
        metrics |= {"reward/mean": float(total.mean()), "reward/std": float(total.std(correction=0))}
        if scores.failed is not None:
            metrics["reward/failed"] = sum(scores.failed) / len(scores.failed)
        metrics |= {f"reward/{name}": sum(values) / len(values) for name, values in scores.components.items()}
    return metrics
