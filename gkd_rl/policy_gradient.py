"""Score-function estimate of the gradient of E_{y ~ p_S}[r] (first term of GKD paper Eq. 5).

The paper says "REINFORCE-like" and no more; the default here is REINFORCE on the whole sequence's log-probability with
a leave-one-out baseline (RLOO, Ahmadian et al. 2024). Every baseline is independent of the sequence it is subtracted
for, so the expected gradient stays that of E[r].
"""

from __future__ import annotations

from torch import Tensor

from gkd_rl.config import Baseline
from gkd_rl.masking import sequence_sum


def advantages(rewards_PK: Tensor, baseline: Baseline) -> Tensor:
    """Reward minus baseline, shape (P, K).

    Args:
        rewards_PK: one reward per rollout, K rollouts for each of P prompts.
        baseline: none; batch_mean = mean of all other sequences; leave_one_out = mean of the prompt's other rollouts.

    Raises:
        ValueError: the baseline has no other sequence to average.
    """
    if rewards_PK.dim() != 2:
        raise ValueError(f"rewards must have shape (P, K), not {tuple(rewards_PK.shape)}.")
    if baseline is Baseline.none:
        return rewards_PK
    groups = rewards_PK if baseline is Baseline.leave_one_out else rewards_PK.reshape(1, -1)
    size = groups.shape[1]
    if size < 2:
        raise ValueError(f"baseline={baseline.value} needs at least 2 sequences to compare, not {size}.")
    others = (groups.sum(dim=1, keepdim=True) - groups) / (size - 1)
    return (groups - others).reshape(rewards_PK.shape)


def reinforce(logp_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """-Σ_b A_b Σ_t log p(y_bt), a scalar whose gradient descends -E[r]; the objective divides it.

    Args:
        logp_BT: log-probabilities of the sampled tokens at the sampling temperature.
        advantages_B: one per sequence; no gradient flows into them.
        mask_BT: valid tokens.
    """
    return -(advantages_B.detach() * sequence_sum(logp_BT, mask_BT)).sum()
