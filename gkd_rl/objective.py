"""The objective: maximise (1 - alpha) E[r] - alpha E[D(p_T || p_S)] on one batch of student rollouts (paper Eq. 5).

Written as a loss: (1 - alpha) * L_r + alpha * L_D, L_r the surrogate of -E[r], L_D the reduced divergence. No gradient
flows through the sampling of y, unless `kd_credit` adds its score-function term to L_D. Every divisor counts the
sequences or generated tokens of the WHOLE optimiser step, over all ranks and micro-batches, so that the gradient does
not depend on how the step is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.choices import DivergenceReduction, KlEstimator, SurrogateReduction
from gkd_rl.masking import sequence_mean, sequence_sum
from gkd_rl.policy_gradient import clipped, sampled_kl, surrogate
from gkd_rl.types import Credits, LossTerms, TokenTerms

Reduction = DivergenceReduction | SurrogateReduction


@dataclass(frozen=True)
class StepTotals:
    """Sequences and valid completion tokens of the whole optimiser step, over all ranks and micro-batches."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class Objective:
    """How per-token numbers become the two terms.

    Attributes:
        divergence_reduction: of D.
        surrogate_reduction: of the policy gradient.
        clip: low and high of the PPO ratio, None for REINFORCE.
        kl_coefficient: of the sampled KL to the initial student that is added to L_r: (1/2)(log p_S - log p_0)² per
            token, the estimator whose gradient as a loss is that of KL(p_S || p_0) at each position.
    """

    divergence_reduction: DivergenceReduction
    surrogate_reduction: SurrogateReduction
    clip: tuple[float, float] | None = None
    kl_coefficient: float = 0.0

    def __call__(self, terms: TokenTerms, mask_BT: Tensor, credits: Credits, totals: StepTotals) -> LossTerms:
        """What one micro-batch adds to the two terms of the step.

        Args:
            terms: per-token numbers of the micro-batch.
            mask_BT: valid tokens.
            credits: weights of the score function; without reward weights the step has no reward term (alpha = 1, or
                not the student's text).
            totals: of the whole step.

        Raises:
            ValueError: there is neither a reward nor a divergence to learn from.
        """
        if credits.reward_BT is None and terms.divergence_BT is None:
            raise ValueError("the step has neither advantages nor a divergence.")
        reward = divergence = divergence_loss = None
        clipped_tokens = torch.zeros((), device=mask_BT.device)
        if credits.reward_BT is not None:
            reward = self._score_function(terms, credits, credits.reward_BT, mask_BT, self.surrogate_reduction, totals)
            if self.clip is not None and credits.old_logp_BT is not None:
                lost_BT = clipped(terms.logp_BT.detach(), credits.old_logp_BT, credits.reward_BT, self.clip)
                clipped_tokens = (lost_BT & mask_BT).sum().float()
            if self.kl_coefficient > 0:
                if credits.initial_logp_BT is None:
                    raise ValueError("the KL to the initial student needs its log-probabilities.")
                kl_BT = sampled_kl(terms.logp_BT, credits.initial_logp_BT, KlEstimator.k2)
                reward = reward + self.kl_coefficient * reduce(kl_BT, mask_BT, self.surrogate_reduction, totals)
        if terms.divergence_BT is not None:
            divergence = reduce(terms.divergence_BT, mask_BT, self.divergence_reduction, totals)
            divergence_loss = divergence
            if credits.divergence_BT is not None:
                # A credit is to be made small, an advantage large.
                divisor = SurrogateReduction.sequence_sum
                if self.divergence_reduction is DivergenceReduction.token_mean:
                    divisor = SurrogateReduction.token_mean
                term = self._score_function(terms, credits, -credits.divergence_BT, mask_BT, divisor, totals)
                divergence_loss = divergence + term
        return LossTerms(reward, divergence_loss, None if divergence is None else divergence.detach(), clipped_tokens)

    def _score_function(
        self,
        terms: TokenTerms,
        credits: Credits,
        weights_BT: Tensor,
        mask_BT: Tensor,
        reduction: SurrogateReduction,
        totals: StepTotals,
    ) -> Tensor:
        """The surrogate with these weights."""
        loss_BT = surrogate(terms.logp_BT, credits.old_logp_BT, weights_BT, self.clip)
        return reduce(loss_BT, mask_BT, reduction, totals)


def reduce(values_BT: Tensor, mask_BT: Tensor, reduction: Reduction, totals: StepTotals) -> Tensor:
    """This micro-batch's share of the step's number.

    sequence_mean is paper Eq. 2: the mean over each completion first, then over completions. sequence_sum: the sum over
    each completion, then the mean. token_mean: the mean over all tokens of the step.
    """
    if reduction.value == "sequence_mean":
        return sequence_mean(values_BT, mask_BT).sum() / max(totals.sequences, 1)
    total = sequence_sum(values_BT, mask_BT).sum()
    return total / max(totals.tokens if reduction.value == "token_mean" else totals.sequences, 1)
