"""The objective (paper Eq. 5): maximise (1 - alpha) E[r(y)] - alpha E[D(p_T || p_S)(y|x)] over y ~ p_S.

As a loss: (1 - alpha) * L_r + alpha * L_D. L_r is the surrogate loss of -E[r] (`policy_gradient.surrogate`), L_D the
divergence reduced over tokens and completions (paper Eq. 2). As in the paper, no gradient flows through the sampling of
y in L_D. Departures, all optional: `kd_credit` adds that score-function term to L_D, `kl_coefficient` a KL to the
initial student to L_r, and there are other reductions than the paper's `sequence_mean`.

Every divisor counts the sequences or completion tokens of the WHOLE optimiser step, over all ranks and micro-batches,
so the gradient does not depend on how the step is split into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceReduction, KlEstimator, SurrogateReduction
from gkd_rl.losses.policy_gradient import is_clipped, sampled_kl, surrogate
from gkd_rl.types import Credits, LossTerms, TokenTerms

Reduction = DivergenceReduction | SurrogateReduction
ALL = slice(None)


@dataclass(frozen=True)
class StepTotals:
    """Sequences and valid completion tokens of the whole optimiser step, over all ranks and micro-batches."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class Objective:
    """The settings of the objective: how per-token terms become L_r and L_D.

    Attributes:
        divergence_reduction: of D, from tokens to a scalar.
        surrogate_reduction: of the policy gradient.
        clip: low and high bound of the PPO ratio's distance from 1; None for REINFORCE.
        kl_coefficient: of the sampled KL to the initial student that is added to L_r: (1/2)(log p_S - log p_0)² per
            token (k2), the estimator whose gradient as a loss is that of KL(p_S || p_0) at each position.
    """

    divergence_reduction: DivergenceReduction
    surrogate_reduction: SurrogateReduction
    clip: tuple[float, float] | None = None
    kl_coefficient: float = 0.0

    def __call__(self, terms: TokenTerms, mask_BT: Tensor, credits: Credits, totals: StepTotals) -> LossTerms:
        """One micro-batch's share of the two terms of the step.

        Args:
            terms: per-token terms of the micro-batch.
            mask_BT: valid tokens.
            credits: weights of the score function; without advantages the step has no reward term (alpha = 1, or
                completions that are not the student's).
            totals: of the whole step.

        Raises:
            ValueError: there are neither advantages nor a divergence.
        """
        divergence_N = None if terms.divergence_BT is None else terms.divergence_BT[mask_BT]
        return self.token_loss(mask_BT, credits, totals)(terms.logp_BT[mask_BT], divergence_N)

    def token_loss(self, mask_BT: Tensor, credits: Credits, totals: StepTotals) -> TokenLoss:
        """The same as a function of the valid tokens' terms, which `fused_loss` calls chunk by chunk."""

        def divisor(reduction: Reduction) -> Tensor:
            return divisors(mask_BT, reduction, totals)[mask_BT]

        def valid(values_BT: Tensor | None) -> Tensor | None:
            return None if values_BT is None else values_BT[mask_BT]

        divergence = self.divergence_reduction
        credit = SurrogateReduction.sequence_sum  # the length of sequence_mean is in the credit (divergence_credit)
        if divergence is DivergenceReduction.token_mean:
            credit = SurrogateReduction.token_mean
        return TokenLoss(
            self,
            valid(credits.reward_BT),
            valid(credits.divergence_BT),
            valid(credits.old_logp_BT),
            valid(credits.initial_logp_BT),
            divisor(self.surrogate_reduction),
            divisor(divergence),
            divisor(credit),
        )


@dataclass(frozen=True)
class TokenLoss:
    """The two terms of a micro-batch as sums over its N valid tokens, in the order of the mask.

    Attributes:
        objective: the settings.
        reward_N: advantages, the weights of the score function in L_r; or None.
        credit_N: weights of the score function in L_D, or None.
        old_logp_N: log-probabilities before the first update on this rollout, or None.
        initial_logp_N: log-probabilities under the initial student, or None.
        reward_divisor_N: divisor of each token's surrogate in L_r.
        divergence_divisor_N: divisor of each token's divergence in L_D.
        credit_divisor_N: divisor of each token's score-function term in L_D.
    """

    objective: Objective
    reward_N: Tensor | None
    credit_N: Tensor | None
    old_logp_N: Tensor | None
    initial_logp_N: Tensor | None
    reward_divisor_N: Tensor
    divergence_divisor_N: Tensor
    credit_divisor_N: Tensor

    def __call__(self, logp_N: Tensor, divergence_N: Tensor | None, tokens: slice = ALL) -> LossTerms:
        """Both terms of some of the tokens.

        Args:
            logp_N: their log-probabilities.
            divergence_N: their divergences, or None.
            tokens: which of the micro-batch's valid tokens they are.

        Raises:
            ValueError: there are neither advantages nor a divergence.
        """
        if self.reward_N is None and divergence_N is None:
            raise ValueError("the step has neither advantages nor a divergence.")
        clip, coefficient = self.objective.clip, self.objective.kl_coefficient
        old_N = None if self.old_logp_N is None else self.old_logp_N[tokens]
        reward = divergence = divergence_loss = None
        clipped_tokens = torch.zeros((), device=logp_N.device)
        if self.reward_N is not None:
            weights_N, divisor_N = self.reward_N[tokens], self.reward_divisor_N[tokens]
            reward = (surrogate(logp_N, old_N, weights_N, clip) / divisor_N).sum()
            if clip is not None and old_N is not None:
                clipped_tokens = is_clipped(logp_N.detach(), old_N, weights_N, clip).sum().float()
            if coefficient > 0:
                if self.initial_logp_N is None:
                    raise ValueError("the KL to the initial student needs its log-probabilities.")
                kl_N = sampled_kl(logp_N, self.initial_logp_N[tokens], KlEstimator.k2)
                reward = reward + coefficient * (kl_N / divisor_N).sum()
        if divergence_N is not None:
            divergence = (divergence_N / self.divergence_divisor_N[tokens]).sum()
            divergence_loss = divergence
            if self.credit_N is not None:  # minus: L_D is minimised, while the surrogate maximises its weights
                loss_N = surrogate(logp_N, old_N, -self.credit_N[tokens], clip)
                divergence_loss = divergence + (loss_N / self.credit_divisor_N[tokens]).sum()
        return LossTerms(reward, divergence_loss, None if divergence is None else divergence.detach(), clipped_tokens)


def divisors(mask_BT: Tensor, reduction: Reduction, totals: StepTotals) -> Tensor:
    """Divisor of each token's value before summation over the step, integers, shape (B, T).

    sequence_mean (paper Eq. 2): the mean over each completion, then over completions. sequence_sum: the sum over each
    completion, then the mean over completions. token_mean: the mean over all tokens of the step.
    """
    if reduction.value == "sequence_mean":
        length_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return (length_B1 * max(totals.sequences, 1)).expand(mask_BT.shape)
    divisor = totals.tokens if reduction.value == "token_mean" else totals.sequences
    return torch.full_like(mask_BT, max(divisor, 1), dtype=torch.long)
