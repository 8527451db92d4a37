"""Who is credited for what: from rewards, sampled KL, values and divergences to one weight for each token.

Two weights come out: the advantage of the reward term, and the credit of the divergence term (`kd_credit`). What is
needed beside the rewards comes from a survey, one pass over the whole step without gradient before its first update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.choices import Baseline, DivergenceReduction, KdCredit, KlEstimator
from gkd_rl.policy_gradient import (
    advantages,
    at_last_token,
    divergence_credit,
    gae,
    minus_others,
    sampled_kl,
    to_go,
)
from gkd_rl.types import Rollout, Survey


@dataclass(frozen=True)
class CreditSettings:
    """See conf/policy_gradient and conf/divergence.

    Attributes:
        per_prompt: K.
        baseline: of the advantage; `learned` with discount and gae_lambda.
        divide_by_std: GRPO's division.
        whiten: advantages to mean 0 and standard deviation 1 over the tokens of the step.
        fixed_advantage: every advantage is this number, whatever the reward (a control), or None.
        kl_in_reward: coefficient of the sampled KL that is subtracted from each token's reward.
        kd_credit: whether the divergence term has its score-function part.
        divergence_reduction: of the divergence.
        discount: gamma.
        gae_lambda: lambda of the advantage estimate.
        bootstrap: truncated completions end in their last state's value.
    """

    per_prompt: int
    baseline: Baseline = Baseline.none
    divide_by_std: bool = False
    whiten: bool = False
    fixed_advantage: float | None = None
    kl_in_reward: float = 0.0
    kd_credit: KdCredit = KdCredit.none
    divergence_reduction: DivergenceReduction = DivergenceReduction.sequence_mean
    discount: float = 1.0
    gae_lambda: float = 1.0
    bootstrap: bool = True


def reward_weights(
    settings: CreditSettings, rewards_B: Tensor, rollout: Rollout, survey: Survey, first: int = 0
) -> Tensor:
    """Advantage of each token, shape (B, T), 0 where masked.

    Args:
        settings: baseline and its kin.
        rewards_B: of all ranks, in their order: baseline=batch_mean compares with the whole step.
        rollout: of this rank.
        survey: of this rank.
        first: row of `rewards_B` where this rank's own begin.

    Raises:
        ValueError: the survey lacks what the settings ask for.
    """
    mask_BT = rollout.mask_BT
    if settings.fixed_advantage is not None:
        return settings.fixed_advantage * mask_BT.to(rewards_B.dtype)
    kl_BT = None
    if settings.kl_in_reward > 0:
        if survey.logp_BT is None or survey.initial_logp_BT is None:
            raise ValueError("the sampled KL needs the log-probabilities of both students.")
        kl_BT = sampled_kl(survey.logp_BT, survey.initial_logp_BT, KlEstimator.k1) * mask_BT
    if settings.baseline is Baseline.learned:
        if survey.values_BT1 is None:
            raise ValueError("baseline=learned needs the value head's numbers.")
        rewards_BT = at_last_token(rewards_B[first : first + rollout.n_sequences], mask_BT)
        if kl_BT is not None:
            rewards_BT = rewards_BT - settings.kl_in_reward * kl_BT
        cut_B = rollout.truncated_B & settings.bootstrap
        return gae(rewards_BT, survey.values_BT1, mask_BT, cut_B, settings.discount, settings.gae_lambda)
    advantages_B = advantages(rewards_B.view(-1, settings.per_prompt), settings.baseline, settings.divide_by_std)
    weights_BT = advantages_B.view(-1, 1)[first : first + rollout.n_sequences] * mask_BT
    if kl_BT is not None:
        weights_BT = weights_BT - settings.kl_in_reward * minus_others(to_go(kl_BT, mask_BT), settings.per_prompt)
    return weights_BT * mask_BT


def divergence_weights(
    settings: CreditSettings, rollout: Rollout, survey: Survey, total: tuple[float, int]
) -> Tensor | None:
    """Credit of each token for the divergence, (B, T); None when no gradient flows through sampling.

    Args:
        settings: kd_credit and the reduction.
        rollout: the student's completions.
        survey: with the divergence.
        total: sum of the divergence and number of tokens of the whole step, over all ranks.
    """
    if settings.kd_credit is KdCredit.none or survey.divergence_BT is None:
        return None
    return divergence_credit(
        survey.divergence_BT, rollout.mask_BT, settings.divergence_reduction, settings.per_prompt, total
    )


def whitened(weights_BT: Tensor, mask_BT: Tensor, sums: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the valid tokens of the step.

    Args:
        weights_BT: advantages.
        mask_BT: valid tokens.
        sums: number, sum and sum of squares over all ranks, see `moments`.
    """
    count, total, squares = sums
    mean = total / count.clamp(min=1)
    variance = squares / count.clamp(min=1) - mean**2
    scaled_BT = (weights_BT.double() - mean) / (variance.clamp(min=0).sqrt() + 1e-8)
    return torch.where(mask_BT, scaled_BT, 0.0).to(weights_BT.dtype)


def moments(weights_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Number, sum and sum of squares of the valid tokens' weights, shape (3,), float64, to be summed over ranks."""
    valid = weights_BT[mask_BT].double()  # the variance of equal advantages would be rounding in float32
    return torch.stack([mask_BT.sum().to(valid.dtype), valid.sum(), (valid**2).sum()])
