"""The objective: alpha, the two terms and their divisors, against values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceReduction, SurrogateReduction
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.types import Credits, LossTerms, TokenTerms

MASK = torch.tensor([[True, True, True], [True, False, False]])
LOGP = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
DIVERGENCE = torch.tensor([[0.3, 0.6, 0.9], [2.0, 0.0, 0.0]])
ADVANTAGES = torch.tensor([0.5, -1.5])
CREDITS = Credits(ADVANTAGES.unsqueeze(1).expand(2, 3))
TOTALS = StepTotals(sequences=5, tokens=8)  # the step has three more sequences in other micro-batches

SURROGATE = -(0.5 * -6.0 - 1.5 * -4.0)  # -3
SURROGATES = {
    SurrogateReduction.sequence_sum: SURROGATE / 5,
    SurrogateReduction.sequence_mean: -(0.5 * -2.0 - 1.5 * -4.0) / 5,
    SurrogateReduction.token_mean: SURROGATE / 8,
}
DIVERGENCES = {
    DivergenceReduction.sequence_mean: (0.6 + 2.0) / 5,
    DivergenceReduction.token_mean: 3.8 / 8,
    DivergenceReduction.sequence_sum: 3.8 / 5,
}


def evaluate(
    divergence: DivergenceReduction = DivergenceReduction.sequence_mean,
    surrogate: SurrogateReduction = SurrogateReduction.sequence_sum,
    *,
    with_reward: bool = True,
    with_divergence: bool = True,
) -> tuple[LossTerms, Tensor, Tensor]:
    logp, divergence_BT = LOGP.clone().requires_grad_(), DIVERGENCE.clone().requires_grad_()
    terms = TokenTerms(logp, divergence_BT if with_divergence else None, torch.zeros_like(LOGP))
    losses = Objective(divergence, surrogate)(terms, MASK, CREDITS if with_reward else Credits(), TOTALS)
    return losses, logp, divergence_BT


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", list(DivergenceReduction))
@pytest.mark.parametrize("surrogate", list(SurrogateReduction))
def test_value(alpha: float, divergence: DivergenceReduction, surrogate: SurrogateReduction) -> None:
    losses, _, _ = evaluate(divergence, surrogate)
    assert losses.reward is not None
    assert losses.divergence is not None
    assert losses.reward.item() == pytest.approx(SURROGATES[surrogate])
    assert losses.divergence.item() == pytest.approx(DIVERGENCES[divergence])
    expected = (1 - alpha) * SURROGATES[surrogate] + alpha * DIVERGENCES[divergence]
    assert losses.loss(alpha).item() == pytest.approx(expected)


def test_gradients_at_the_ends() -> None:
    """alpha = 0 leaves the divergence without gradient, alpha = 1 the log-probabilities."""
    for alpha, reward_gradient, divergence_gradient in ((0.0, True, False), (0.3, True, True), (1.0, False, True)):
        losses, logp, divergence = evaluate()
        losses.loss(alpha).backward()
        assert logp.grad is not None
        assert divergence.grad is not None
        assert bool(logp.grad.any()) is reward_gradient
        assert bool(divergence.grad.any()) is divergence_gradient
        assert not logp.grad[~MASK].any()
        assert not divergence.grad[~MASK].any()


def test_the_gradient_climbs_the_reward_and_descends_the_divergence() -> None:
    losses, logp, divergence = evaluate()
    losses.loss(0.3).backward()
    assert logp.grad is not None
    assert divergence.grad is not None
    torch.testing.assert_close(logp.grad[:, 0], -0.7 * ADVANTAGES / 5)
    torch.testing.assert_close(divergence.grad[:, 0], 0.3 * torch.tensor([1 / 15, 1 / 5]))


def test_without_advantages_there_is_no_reward_term() -> None:
    for alpha in (0.3, 1.0):
        losses, logp, _ = evaluate(with_reward=False)
        losses.loss(alpha).backward()
        assert losses.reward is None
        assert losses.divergence is not None
        assert losses.loss(alpha).item() == pytest.approx(alpha * losses.divergence.item())
        assert logp.grad is None or not logp.grad.any()


def test_without_a_divergence_there_is_no_divergence_term() -> None:
    losses, _, _ = evaluate(with_divergence=False)
    assert losses.divergence is None
    assert losses.reward is not None
    assert losses.loss(0.0).item() == losses.reward.item() == pytest.approx(SURROGATE / 5)


def test_with_neither_term_the_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="neither advantages nor a divergence"):
        evaluate(with_reward=False, with_divergence=False)


@pytest.mark.parametrize("divergence", list(DivergenceReduction))
@pytest.mark.parametrize("surrogate", list(SurrogateReduction))
def test_micro_batches_of_a_step_add_up(divergence: DivergenceReduction, surrogate: SurrogateReduction) -> None:
    objective = Objective(divergence, surrogate)
    totals = StepTotals(sequences=2, tokens=4)
    whole = objective(TokenTerms(LOGP, DIVERGENCE, LOGP), MASK, CREDITS, totals).loss(0.3)
    parts = [
        objective(
            TokenTerms(LOGP[i], DIVERGENCE[i], LOGP[i]), MASK[i], CREDITS.rows(torch.arange(i.start, i.stop), 3), totals
        )
        for i in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(parts[0].loss(0.3) + parts[1].loss(0.3), whole)


def test_a_fully_masked_micro_batch_adds_zero() -> None:
    nothing = torch.zeros_like(MASK)
    for reduction in DivergenceReduction:
        objective = Objective(reduction, SurrogateReduction.token_mean)
        losses = objective(TokenTerms(LOGP, DIVERGENCE, LOGP), nothing, CREDITS, StepTotals(0, 0))
        assert losses.loss(0.3).item() == 0.0
