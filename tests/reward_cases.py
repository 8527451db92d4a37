"""Every configurable policy gradient, and the exact objective whose gradient its expectation is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from enumeration import CompletionSpace
from exact import Expectations
from torch import Tensor

from gkd_rl.config.choices import Baseline, DivergenceName, SurrogateReduction

COEFFICIENT = 0.7  # of the sampled KL
SEQUENCE_SUM, SEQUENCE_MEAN, TOKEN_MEAN = SurrogateReduction


@dataclass(frozen=True)
class Case:
    """A policy gradient, and the objective whose gradient it ascends in expectation.

    Attributes:
        ascends: the objective as a formula, for docs/estimators.md.
        exact: the objective.
        batch: see `CompletionSpace.draws`.
        credit: `CreditSettings` that differ from REINFORCE without baseline.
        objective: settings of `Objective` that differ.
        recipe: settings of `StepRecipe` that differ.
    """

    ascends: str
    exact: Callable[[Expectations, CompletionSpace], Tensor]
    batch: str = "one"
    credit: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


def centred(rewards: list[float]) -> list[float]:
    return [one - statistics.fmean(rewards) for one in rewards]


def surrogate_of(reduction: SurrogateReduction, advantages: Callable[[list[float]], list[float]]) -> Any:
    """Its objective, with one advantage for all tokens of a completion."""

    def exact(expectations: Expectations, _: CompletionSpace) -> Tensor:
        return expectations.by_hand(
            lambda rewards, lengths: [[a] * n for a, n in zip(advantages(rewards), lengths, strict=True)], reduction
        )

    return exact


def whitened(rewards: list[float], lengths: list[int]) -> list[list[float]]:
    tokens = [one for one, length in zip(rewards, lengths, strict=True) for _ in range(length)]
    mean, deviation = statistics.fmean(tokens), statistics.pstdev(tokens)
    return [[(one - mean) / (deviation + 1e-8)] * length for one, length in zip(rewards, lengths, strict=True)]


REWARD = "E[r]"
ENDS = "E[r + V(end)]"
SURROGATE = "U"
LEARNED = {"baseline": Baseline.learned}
CASES = {
    "REINFORCE": Case(REWARD, lambda e, s: e.reward()),
    "REINFORCE, two completions": Case(REWARD, lambda e, s: e.reward(), "pair"),
    "REINFORCE, sampled at temperature 0.7": Case(REWARD, lambda e, s: e.reward(), recipe={"temperature": 0.7}),
    "batch_mean": Case(REWARD, lambda e, s: e.reward(), "prompts", {"baseline": Baseline.batch_mean}),
    "leave_one_out": Case(REWARD, lambda e, s: e.reward(), "pair", {"baseline": Baseline.leave_one_out}),
    "group_mean, K = 2": Case("(K-1)/K E[r]", lambda e, s: e.reward() / 2, "pair", {"baseline": Baseline.group_mean}),
    "clip, first epoch": Case(REWARD, lambda e, s: e.reward(), objective={"clip": (0.1, 0.2)}),
    "leave_one_out, clip, first epoch": Case(
        REWARD, lambda e, s: e.reward(), "pair", {"baseline": Baseline.leave_one_out}, {"clip": (0.1, 0.2)}
    ),
    "clip, later epoch": Case(
        "E_old[Σ min(ρ A, clip(ρ) A)]",
        lambda e, s: e.clipped((0.1, 0.2)),
        objective={"clip": (0.1, 0.2)},
        recipe={"second_epoch": True},
    ),
    "learned, gae_lambda 1, any V": Case(
        ENDS, lambda e, s: e.bootstrapped(e.end_values(s.value_head)), credit=LEARNED, recipe={"values": "any"}
    ),
    "learned, gae_lambda 0.5, true V": Case(
        ENDS,
        lambda e, s: e.bootstrapped(e.end_values(s.value_head)),
        credit=LEARNED | {"gae_lambda": 0.5},
        recipe={"values": "true"},
    ),
    "kl_in_reward c": Case(
        "E[r] - c R*", lambda e, s: e.reward() - COEFFICIENT * e.kl(), credit={"kl_in_reward": COEFFICIENT}
    ),
    "kl_in_reward c, leave_one_out": Case(
        "E[r] - c R*",
        lambda e, s: e.reward() - COEFFICIENT * e.kl(),
        "pair",
        {"baseline": Baseline.leave_one_out, "kl_in_reward": COEFFICIENT},
    ),
    "kl_in_reward c, learned, gae_lambda 1, any V": Case(
        "E[r + V(end)] - c R*",
        lambda e, s: e.bootstrapped(e.end_values(s.value_head)) - COEFFICIENT * e.kl(),
        credit=LEARNED | {"kl_in_reward": COEFFICIENT},
        recipe={"values": "any"},
    ),
    "KL in the loss, c": Case(
        "E[r] - c R",
        lambda e, s: e.reward() - COEFFICIENT * e.position_kl(DivergenceName.reverse_kl),
        objective={"kl_coefficient": COEFFICIENT},
    ),
    "fixed_advantage -1": Case("0", lambda e, s: 0 * e.reward(), credit={"fixed_advantage": -1.0}),
    "sequence_mean": Case(
        "E[r / L], L the length",
        lambda e, s: e.mean(e.rewards_B / e.oracle.lengths_B),
        "pair",
        objective={"surrogate_reduction": SEQUENCE_MEAN},
    ),
    "leave_one_out, sequence_mean": Case(
        "E[(r - b) / L], b = E[r] held fixed",
        lambda e, s: e.mean((e.rewards_B - e.reward().detach()) / e.oracle.lengths_B),
        "pair",
        {"baseline": Baseline.leave_one_out},
        {"surrogate_reduction": SEQUENCE_MEAN},
    ),
    "token_mean": Case(
        SURROGATE, surrogate_of(TOKEN_MEAN, list), "pair", objective={"surrogate_reduction": TOKEN_MEAN}
    ),
    "group_mean, divide_by_std, sequence_mean (GRPO)": Case(
        SURROGATE,
        surrogate_of(SEQUENCE_MEAN, lambda r: [one / (statistics.stdev(r) + 1e-4) for one in centred(r)]),
        "pair",
        {"baseline": Baseline.group_mean, "divide_by_std": True},
        {"surrogate_reduction": SEQUENCE_MEAN, "clip": (0.1, 0.2)},
    ),
    "group_mean, divide_by_std, token_mean (DAPO)": Case(
        SURROGATE,
        surrogate_of(TOKEN_MEAN, lambda r: [one / (statistics.stdev(r) + 1e-4) for one in centred(r)]),
        "pair",
        {"baseline": Baseline.group_mean, "divide_by_std": True},
        {"surrogate_reduction": TOKEN_MEAN, "clip": (0.1, 0.28)},
    ),
    "whiten": Case(SURROGATE, lambda e, s: e.by_hand(whitened, SEQUENCE_SUM), "prompts", {"whiten": True}),
}
