"""Policy gradient: advantages against hand-computed values, and the expectation over ALL completions, exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import MakeModel, MakePrompts, MakeRollout, MakeTokenizer
from torch import Tensor

from gkd_rl.config.choices import Baseline, DivergenceReduction, SurrogateReduction
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.objective import Objective, StepTotals
from gkd_rl.losses.policy_gradient import advantages, surrogate
from gkd_rl.types import Credits, Projection, TokenTerms

END = 1
OTHER_TOKENS = (0, 2, 3)  # all but the end-of-sequence token
REWARDS = torch.tensor([[1.0, 0.0, 2.0], [4.0, -1.0, 3.0]], dtype=torch.float64)
# Every completion of at most two tokens over a vocabulary of four, the end included; the last nine are truncated.
COMPLETIONS = [(END,), *((x, END) for x in OTHER_TOKENS), *itertools.product(OTHER_TOKENS, OTHER_TOKENS)]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (Baseline.none, [[1.0, 0.0, 2.0], [4.0, -1.0, 3.0]]),
        (Baseline.leave_one_out, [[0.0, -1.5, 1.5], [3.0, -4.5, 1.5]]),
        # the mean of the other five: (9 - r) / 5
        (Baseline.batch_mean, [[-0.6, -1.8, 0.6], [3.0, -3.0, 1.8]]),
    ],
)
def test_advantages(baseline: Baseline, expected: list[list[float]]) -> None:
    torch.testing.assert_close(advantages(REWARDS, baseline), torch.tensor(expected, dtype=torch.float64))


def test_leave_one_out_sums_to_zero_in_every_group() -> None:
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        advantages(rewards, Baseline.leave_one_out).sum(dim=1), torch.zeros(5, dtype=torch.float64)
    )
    shifted = rewards + torch.arange(5, dtype=torch.float64).unsqueeze(1)  # a constant for each prompt
    torch.testing.assert_close(advantages(shifted, Baseline.leave_one_out), advantages(rewards, Baseline.leave_one_out))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="leave_one_out needs at least 2"):
        advantages(REWARDS[:, :1], Baseline.leave_one_out)
    with pytest.raises(ValueError, match="batch_mean needs at least 2"):
        advantages(REWARDS[:1, :1], Baseline.batch_mean)
    with pytest.raises(ValueError, match="shape"):
        advantages(REWARDS.flatten(), Baseline.none)
    assert advantages(REWARDS[:, :1], Baseline.batch_mean).tolist() == [[-3.0], [3.0]]


def test_reinforce_value_and_gradient() -> None:
    logp = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]], requires_grad=True)
    weights = torch.tensor([[3.0, 3.0, 0.0], [-5.0, 0.0, 0.0]], requires_grad=True)
    loss = surrogate(logp, None, weights, None).sum()
    loss.backward()
    assert loss.item() == -(3.0 * -3.0 - 5.0 * -8.0)
    assert logp.grad is not None
    assert logp.grad.tolist() == [[-3.0, -3.0, 0.0], [5.0, 0.0, 0.0]]
    assert weights.grad is None


class Table:
    """A model of completions: one row of logits for the first token and one after each token."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.logits = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
        self.rewards = torch.randn(len(COMPLETIONS), generator=generator, dtype=torch.float64)

    def logp(self, completion: tuple[int, ...]) -> Tensor:
        """Log-probability of each token, padded to two, shape (2,)."""
        table = self.logits.log_softmax(-1)
        tokens = [table[0 if i == 0 else 1 + completion[i - 1], token] for i, token in enumerate(completion)]
        return torch.stack([*tokens, *[torch.zeros_like(tokens[0])] * (2 - len(tokens))])

    def probability(self, completion: tuple[int, ...]) -> Tensor:
        return self.logp(completion).sum().exp()

    def exact(self) -> Tensor:
        """Gradient of E[r] by autograd through the probabilities of all completions."""
        expectation = sum(self.probability(y) * r for y, r in zip(COMPLETIONS, self.rewards, strict=True))
        assert isinstance(expectation, Tensor)
        return torch.autograd.grad(expectation, self.logits)[0]

    def expected_estimate(self, prompts: int, per_prompt: int, baseline: Baseline) -> Tensor:
        """E over all tuples of completions of the objective's gradient on them."""
        objective = Objective(DivergenceReduction.sequence_mean, SurrogateReduction.sequence_sum)
        total = torch.zeros_like(self.logits)
        size = prompts * per_prompt
        for indices in itertools.product(range(len(COMPLETIONS)), repeat=size):
            drawn = [COMPLETIONS[i] for i in indices]
            rewards = self.rewards[list(indices)].view(prompts, per_prompt)
            mask = torch.tensor([[True, len(y) > 1] for y in drawn])
            terms = TokenTerms(torch.stack([self.logp(y) for y in drawn]), None, torch.zeros(size, 2))
            totals = StepTotals(size, int(mask.sum()))
            weights = advantages(rewards, baseline).view(-1, 1).expand(mask.shape)
            loss = objective(terms, mask, Credits(weights), totals).loss(0.0)
            probability = torch.stack([self.probability(y) for y in drawn]).prod().detach()
            total += probability * torch.autograd.grad(loss, self.logits)[0]
        return total


@pytest.mark.parametrize(
    ("baseline", "prompts", "per_prompt"),
    [
        (Baseline.none, 1, 1),
        (Baseline.none, 1, 2),
        (Baseline.leave_one_out, 1, 2),
        (Baseline.batch_mean, 2, 1),
    ],
)
def test_the_expected_gradient_is_that_of_the_expected_reward(
    baseline: Baseline, prompts: int, per_prompt: int
) -> None:
    table = Table()
    probabilities = torch.stack([table.probability(y) for y in COMPLETIONS])
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
    exact = table.exact()
    assert exact.abs().max() > 0.01
    descent = table.expected_estimate(prompts, per_prompt, baseline)
    torch.testing.assert_close(-descent, exact, rtol=0, atol=1e-8)


def test_the_same_through_a_t5_and_the_fused_head(
    make_tokenizer: MakeTokenizer, make_model: MakeModel, make_prompts: MakePrompts, make_rollout: MakeRollout
) -> None:
    model = make_model(make_tokenizer("a"), seed=5)
    prompts = make_prompts([[3, 2, 3]])
    rollout = make_rollout(prompts, COMPLETIONS, per_prompt=len(COMPLETIONS))
    rewards = torch.randn(len(COMPLETIONS), generator=torch.Generator().manual_seed(1))
    head = FusedHead(None, temperature=1.3)
    parameters = [one for one in model.parameters() if one.requires_grad]

    def gradients(of: Tensor) -> Tensor:
        return torch.cat([one.flatten() for one in torch.autograd.grad(of, parameters, retain_graph=True)])

    terms = head(Projection(model(rollout), model.head()), None, rollout.ids_BT, rollout.mask_BT)
    probabilities = terms.logp_BT.sum(dim=1).exp()
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = gradients((probabilities * rewards).sum())
    weights = (probabilities.detach() * rewards).unsqueeze(1).expand(rollout.mask_BT.shape)
    estimate = gradients((surrogate(terms.logp_BT, None, weights, None) * rollout.mask_BT).sum())
    assert exact.norm() > 0.1
    torch.testing.assert_close(-estimate, exact, rtol=1e-4, atol=1e-5 * float(exact.norm()))
