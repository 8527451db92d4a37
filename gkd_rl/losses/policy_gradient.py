"""Policy gradients: score-function estimates of ∇E_{y ~ p_S}[r] (first term of GKD paper Eq. 5), and their weights.

Pure functions, in this order: the surrogate loss, whose gradient is a weighted score function; the advantages of the
reward term; the credit of the divergence term (`kd_credit`); `CreditSettings` and the configured weights of one step.
Values, log-probabilities and divergences come from the pre-update pass (`PreUpdateTerms`).

The paper asks for a policy gradient ("REINFORCE-like") and leaves the estimator open. The default is REINFORCE on the
log-probability of the whole completion with a leave-one-out baseline (RLOO, Ahmadian et al. 2024). The paper has no
`kd_credit`. The expected gradient of every choice is in docs/estimators.md, computed by tests/losses/test_gradients.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.config.choices import Baseline, DivergenceReduction, KdCredit, KlEstimator
from gkd_rl.types import PreUpdateTerms, Rollout, sequence_sum

_EPSILON = 1e-4  # added to the standard deviation, so that equal rewards give advantage 0


def surrogate(
    logp_BT: Tensor, old_logp_BT: Tensor | None, advantages_BT: Tensor, clip: tuple[float, float] | None
) -> Tensor:
    """Surrogate loss of each token, same shape; descending its gradient increases E[r].

    Without clip: -A log p (REINFORCE). With clip: -min(ρ A, clip(ρ, 1-low, 1+high) A), ρ = exp(log p - old log p) (PPO,
    Schulman et al. 2017, Eq. 7; DAPO 2025 with high > low). The objective masks, divides and sums the tokens.

    Args:
        logp_BT: log-probabilities of the sampled tokens at the sampling temperature.
        old_logp_BT: the same before the first update on this rollout; None in the first epoch, where ρ is exactly 1.
        advantages_BT: no gradient flows into them.
        clip: low and high, distances from 1; None for REINFORCE.
    """
    weights_BT = advantages_BT.detach()
    if clip is None:
        return -weights_BT * logp_BT
    ratio_BT = torch.exp(logp_BT - (logp_BT if old_logp_BT is None else old_logp_BT).detach())
    clipped_BT = ratio_BT.clamp(1 - clip[0], 1 + clip[1])
    return -torch.minimum(ratio_BT * weights_BT, clipped_BT * weights_BT)


def is_clipped(logp_BT: Tensor, old_logp_BT: Tensor, advantages_BT: Tensor, clip: tuple[float, float]) -> Tensor:
    """Tokens without gradient because of the clip: ratio too high with A > 0, or too low with A < 0; bool (B, T)."""
    ratio_BT = torch.exp(logp_BT - old_logp_BT)
    up, down = advantages_BT > 0, advantages_BT < 0
    return (up & (ratio_BT > 1 + clip[1])) | (down & (ratio_BT < 1 - clip[0]))


def advantages(rewards_PK: Tensor, baseline: Baseline, divide_by_std: bool = False) -> Tensor:
    """Reward minus baseline, shape (P, K).

    Args:
        rewards_PK: one reward per rollout, K rollouts for each of P prompts.
        baseline: with none, batch_mean (mean of all other sequences) and leave_one_out (mean of the prompt's other
            rollouts) the expected gradient is that of E[r]; with group_mean (mean of all the prompt's rollouts: GRPO,
            DeepSeekMath 2024; Dr. GRPO without the std) it is (K-1)/K of it.
        divide_by_std: divide by the standard deviation of the prompt's rewards (GRPO). Prompts then have equal weight
            whatever the range of their rewards, and the gradient is no longer that of E[r].

    Raises:
        ValueError: the baseline has no other sequence to average, or is not a function of the rewards.
    """
    if rewards_PK.dim() != 2:
        raise ValueError(f"rewards must have shape (P, K), not {tuple(rewards_PK.shape)}.")
    if baseline is Baseline.learned:
        raise ValueError("baseline=learned takes its advantages from gae.")
    centred = rewards_PK
    if baseline is not Baseline.none:
        groups = rewards_PK.reshape(1, -1) if baseline is Baseline.batch_mean else rewards_PK
        size = groups.shape[1]
        if size < 2:
            raise ValueError(f"baseline={baseline.value} needs at least 2 sequences to compare, not {size}.")
        others = size if baseline is Baseline.group_mean else size - 1
        own = 0 if baseline is Baseline.group_mean else groups
        centred = (groups - (groups.sum(dim=1, keepdim=True) - own) / others).reshape(rewards_PK.shape)
    if divide_by_std:
        return centred / (rewards_PK.std(dim=1, keepdim=True) + _EPSILON)
    return centred


def gae(
    rewards_BT: Tensor, values_BT1: Tensor, mask_BT: Tensor, truncated_B: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16), shape (B, T).

    δ_t = r_t + γ V_{t+1} - V_t, A_t = Σ_s (γλ)^(s-t) δ_s. The value after the last token is 0 for a finished completion
    and V(end), the value of its last state, for a truncated one. With λ = γ = 1 the expected gradient is that of
    E[r + V(end)] for any V, and with λ < 1 if V is the true value. If truncated completions have a reward as well,
    γ = 1 counts their outcome twice: set γ < 1, or pass none as truncated.

    Args:
        rewards_BT: reward of each token.
        values_BT1: V before each token and after the last, shape (B, T + 1); column L follows the last of L tokens.
        mask_BT: valid tokens.
        truncated_B: completions whose return includes V(end).
        discount: γ.
        gae_lambda: λ.
    """
    length_B = mask_BT.sum(dim=1, keepdim=True)
    columns = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    ended_BT = (columns == length_B) & ~truncated_B.unsqueeze(1)
    following_BT = torch.where(ended_BT, 0.0, values_BT1[:, 1:])
    delta_BT = rewards_BT + discount * following_BT - values_BT1[:, :-1]
    return reward_to_go(torch.where(mask_BT, delta_BT, 0.0), mask_BT, discount * gae_lambda)


def at_last_token(values_B: Tensor, mask_BT: Tensor) -> Tensor:
    """One value per sequence, placed at its last valid token, shape (B, T)."""
    last_B = mask_BT.sum(dim=1) - 1
    rows = torch.zeros(mask_BT.shape, dtype=values_B.dtype, device=values_B.device)
    return rows.scatter(1, last_B.clamp(min=0).unsqueeze(1), values_B.unsqueeze(1)) * mask_BT


def reward_to_go(values_BT: Tensor, mask_BT: Tensor, discount: float = 1.0) -> Tensor:
    """Return from each token on: Σ_{s >= t} discount^(s-t) value_s over valid tokens, shape (B, T)."""
    sums = torch.zeros_like(values_BT)
    running = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        running = torch.where(mask_BT[:, t], values_BT[:, t] + discount * running, running)
        sums[:, t] = torch.where(mask_BT[:, t], running, 0.0)
    return sums


def sampled_kl(logp_BT: Tensor, initial_logp_BT: Tensor, estimator: KlEstimator) -> Tensor:
    """One-sample estimate of KL(p_S || p_0) at each token (Schulman 2020), shape (B, T), in nats.

    With δ = log p_S - log p_0: k1 = δ, k2 = δ²/2, k3 = exp(-δ) - 1 + δ. k1 and k3 are unbiased estimates of the KL.
    Their gradients, subtracted from the reward or added to the loss, are another question: see docs/estimators.md.
    """
    delta_BT = logp_BT - initial_logp_BT
    if estimator is KlEstimator.k1:
        return delta_BT
    return delta_BT**2 / 2 if estimator is KlEstimator.k2 else torch.expm1(-delta_BT) + delta_BT


def divergence_credit(
    divergence_BT: Tensor, mask_BT: Tensor, reduction: DivergenceReduction, per_prompt: int, total: tuple[float, int]
) -> Tensor:
    """Weights of the score function in the gradient of E_{y~S}[D], to be divided as the reduction's terms, (B, T).

    ∇E[D] = E[∇D] + E[D ∇log p_S(y)]. The paper drops the second term; its weight is, by reduction:
    sequence_sum: the divergence at later positions (the distribution at t does not depend on y_t).
    sequence_mean: all of D(y), because each token also changes the length that D(y) is divided by.
    token_mean: the completion's effect on the mean over the step.
    The baseline is the same quantity of the prompt's (for token_mean: the step's) other completions. It does not depend
    on y, so the mean is unchanged.

    Args:
        divergence_BT: D at each position, without gradient.
        mask_BT: valid tokens.
        reduction: of the divergence.
        per_prompt: K; completions of one prompt are adjacent.
        total: sum of the divergence and number of tokens of the whole step, over all ranks.
    """
    sum_B = sequence_sum(divergence_BT, mask_BT)
    if reduction is DivergenceReduction.token_mean:
        step_sum, step_tokens = total
        length_B = mask_BT.sum(dim=1)
        without_B = (step_sum - sum_B) / (step_tokens - length_B).clamp(min=1)
        return (step_sum / max(step_tokens, 1) - without_B).unsqueeze(1) * step_tokens * mask_BT
    if reduction is DivergenceReduction.sequence_sum:
        credit_BT = reward_to_go(divergence_BT, mask_BT) - torch.where(mask_BT, divergence_BT, 0.0)
    else:
        credit_BT = (sum_B / mask_BT.sum(dim=1).clamp(min=1)).unsqueeze(1).expand_as(divergence_BT)
    return minus_others(credit_BT, per_prompt) * mask_BT


def minus_others(values_BT: Tensor, per_prompt: int) -> Tensor:
    """Subtract the mean of the prompt's other completions at the same position; unchanged for K = 1."""
    if per_prompt < 2:
        return values_BT
    groups = values_BT.reshape(-1, per_prompt, values_BT.shape[1])
    others = (groups.sum(dim=1, keepdim=True) - groups) / (per_prompt - 1)
    return (groups - others).reshape(values_BT.shape)


@dataclass(frozen=True)
class CreditSettings:
    """How advantages and credits are computed; see conf/policy_gradient and conf/divergence.

    Attributes:
        per_prompt: K.
        baseline: of the advantages; `learned` uses `gae` with discount and gae_lambda.
        divide_by_std: divide advantages by the standard deviation of the prompt's rewards (GRPO).
        whiten: scale advantages to mean 0 and standard deviation 1 over the tokens of the step.
        fixed_advantage: this advantage for every token, independent of the reward (control experiment); or None.
        kl_in_reward: coefficient of the sampled KL to the initial student, subtracted from each token's reward.
        kd_credit: whether L_D has its score-function term.
        divergence_reduction: of the divergence.
        discount: γ of `gae`.
        gae_lambda: λ of `gae`.
        bootstrap: the return of a truncated completion includes V(end).
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


def token_advantages(
    settings: CreditSettings, rewards_B: Tensor, rollout: Rollout, pre_update: PreUpdateTerms, first: int = 0
) -> Tensor:
    """Advantage of each token, shape (B, T), 0 where masked.

    Args:
        settings: baseline, its options and the sampled KL.
        rewards_B: rewards of all ranks, in rank order: baseline=batch_mean is a mean over the whole step.
        rollout: of this rank.
        pre_update: of this rank.
        first: index in `rewards_B` of this rank's first completion.

    Raises:
        ValueError: `pre_update` lacks a term that the settings need.
    """
    mask_BT = rollout.mask_BT
    if settings.fixed_advantage is not None:
        return settings.fixed_advantage * mask_BT.to(rewards_B.dtype)
    kl_BT = None
    if settings.kl_in_reward > 0:
        if pre_update.logp_BT is None or pre_update.initial_logp_BT is None:
            raise ValueError("the sampled KL needs the log-probabilities of both students.")
        kl_BT = sampled_kl(pre_update.logp_BT, pre_update.initial_logp_BT, KlEstimator.k1) * mask_BT
    if settings.baseline is Baseline.learned:
        if pre_update.values_BT1 is None:
            raise ValueError("baseline=learned needs the value head's estimates.")
        rewards_BT = at_last_token(rewards_B[first : first + rollout.n_sequences], mask_BT)
        if kl_BT is not None:
            rewards_BT = rewards_BT - settings.kl_in_reward * kl_BT
        bootstrapped_B = rollout.truncated_B & settings.bootstrap
        return gae(rewards_BT, pre_update.values_BT1, mask_BT, bootstrapped_B, settings.discount, settings.gae_lambda)
    advantages_B = advantages(rewards_B.view(-1, settings.per_prompt), settings.baseline, settings.divide_by_std)
    weights_BT = advantages_B.view(-1, 1)[first : first + rollout.n_sequences] * mask_BT
    if kl_BT is not None:
        kl_to_go_BT = minus_others(reward_to_go(kl_BT, mask_BT), settings.per_prompt)
        weights_BT = weights_BT - settings.kl_in_reward * kl_to_go_BT
    return weights_BT * mask_BT


def token_divergence_credit(
    settings: CreditSettings, rollout: Rollout, pre_update: PreUpdateTerms, total: tuple[float, int]
) -> Tensor | None:
    """Credit of each token for the divergence, (B, T); None when no gradient flows through sampling (paper).

    Args:
        settings: kd_credit and the reduction.
        rollout: the student's completions.
        pre_update: its divergence is used.
        total: sum of the divergence and number of tokens of the whole step, over all ranks.
    """
    if settings.kd_credit is KdCredit.none or pre_update.divergence_BT is None:
        return None
    return divergence_credit(
        pre_update.divergence_BT, rollout.mask_BT, settings.divergence_reduction, settings.per_prompt, total
    )


def whiten(weights_BT: Tensor, mask_BT: Tensor, sums: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the valid tokens of the step.

    Args:
        weights_BT: advantages of this rank.
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
    valid = weights_BT[mask_BT].double()  # in float32 the variance of equal advantages would be rounding error
    return torch.stack([mask_BT.sum().to(valid.dtype), valid.sum(), (valid**2).sum()])
