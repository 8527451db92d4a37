"""The objective: maximise (1 - alpha) E[r] - alpha E[D(p_T || p_S)] on one batch of student rollouts (paper Eq. 5).

Written as a loss: (1 - alpha) * L_r + alpha * L_D, L_r = -(1/B) Σ_b A_b log p_S(y_b|x), L_D the reduced divergence.
No gradient flows through the sampling of y. Every divisor counts the sequences or generated tokens of the WHOLE
optimiser step, over all ranks and micro-batches, so that the gradient does not depend on how the step is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gkd_rl.config import DivergenceReduction, SurrogateReduction
from gkd_rl.masking import sequence_mean, sequence_sum
from gkd_rl.policy_gradient import reinforce
from gkd_rl.types import LossTerms, TokenTerms


@dataclass(frozen=True)
class StepTotals:
    """Sequences and valid completion tokens of the whole optimiser step, over all ranks and micro-batches."""

    sequences: int
    tokens: int


@dataclass(frozen=True)
class Objective:
    """alpha and the two reductions."""

    alpha: float
    divergence_reduction: DivergenceReduction
    surrogate_reduction: SurrogateReduction

    def __call__(
        self, terms: TokenTerms, mask_BT: Tensor, advantages_B: Tensor | None, totals: StepTotals
    ) -> LossTerms:
        """What one micro-batch adds to the step's loss.

        Args:
            terms: per-token numbers of the micro-batch.
            mask_BT: valid tokens.
            advantages_B: None when the step has no reward (alpha = 1, or not the student's text).
            totals: of the whole step.

        Raises:
            ValueError: there is neither a reward nor a divergence to learn from.
        """
        surrogate = divergence = None
        loss = terms.logp_BT.sum() * 0.0
        if advantages_B is None and terms.divergence_BT is None:
            raise ValueError(f"alpha={self.alpha}: the step has neither advantages nor a divergence.")
        if advantages_B is not None:
            surrogate = reinforce(terms.logp_BT, advantages_B, mask_BT) / self._surrogate_divisor(totals)
            loss = loss + (1 - self.alpha) * surrogate
        if terms.divergence_BT is not None:
            divergence = self._reduce_divergence(terms.divergence_BT, mask_BT, totals)
            loss = loss + self.alpha * divergence
        return LossTerms(loss, surrogate, divergence)

    def _surrogate_divisor(self, totals: StepTotals) -> int:
        """Sequences for the exact gradient of E[r], generated tokens for the token mean."""
        exact = self.surrogate_reduction is SurrogateReduction.sequence_sum
        return max(totals.sequences if exact else totals.tokens, 1)

    def _reduce_divergence(self, divergence_BT: Tensor, mask_BT: Tensor, totals: StepTotals) -> Tensor:
        """sequence_mean is paper Eq. 2: the mean over each completion first, then over completions."""
        if self.divergence_reduction is DivergenceReduction.sequence_mean:
            return sequence_mean(divergence_BT, mask_BT).sum() / max(totals.sequences, 1)
        total = sequence_sum(divergence_BT, mask_BT).sum()
        if self.divergence_reduction is DivergenceReduction.token_mean:
            return total / max(totals.tokens, 1)
        return total / max(totals.sequences, 1)
