"""Exact objectives for tests/losses/test_gradients.py: plain sums over all completions, from transformers' logits.

Independent of the package's objective, divergences, masks and models, which are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gkd_rl.config.choices import DivergenceName, DivergenceReduction, DivergenceScale, SurrogateReduction
from gkd_rl.losses.divergences import TokenDivergence

END = 1
PROMPTS = ((3, 4, 1), (4, 1))
TOLERANCE = 1e-9

Advantages = Callable[[list[float], list[int]], list[list[float]]]


def assert_same(found: Tensor, exact: Tensor, scale: Tensor | None = None) -> None:
    """Distance below TOLERANCE times the norm of `scale` (needed where `exact` is 0), by default of `exact`."""
    size = float((exact if scale is None else scale).norm())
    assert size > 1e-3, "the exact gradient is too small for a comparison"
    distance = float((found - exact).norm()) / size
    assert distance < TOLERANCE, f"relative distance {distance:.2e}"


@dataclass(frozen=True)
class Draws:
    """All batches that a step can draw.

    Attributes:
        indices: rows of the rollout of all completions, shape (batches, sequences of a batch).
        per_prompt: K.
        share: probability of the batch's prompts.
    """

    indices: Tensor
    per_prompt: int
    share: float

    def probability(self, p_B: Tensor) -> Tensor:
        """Probability of each batch, from that of each completion."""
        return self.share * p_B[self.indices].prod(dim=1)


class Oracle:
    """Logits and hidden states of every completion of both prompts, one prompt after the other."""

    def __init__(
        self,
        models: dict[str, PreTrainedModel],
        completions: Sequence[tuple[int, ...]],
        vocabulary: int,
        max_tokens: int,
    ) -> None:
        self.completions = [*completions] * len(PROMPTS)
        self._vocabulary, self._max_tokens = vocabulary, max_tokens
        self.lengths_B = torch.tensor([len(row) for row in self.completions])
        self.truncated_B = torch.tensor([END not in row for row in self.completions])
        self.valid_BT = torch.arange(max_tokens) < self.lengths_B.unsqueeze(1)
        self.ids_BT = torch.tensor([[*row, *[0] * (max_tokens - len(row))] for row in self.completions])
        self.logits: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}
        for name, model in models.items():
            self.logits[name], self.states[name] = self._forward(model)

    def _forward(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Logits (B, T + 1, vocabulary) and hidden states (B, T + 1, D), before each token and after the last."""
        logits, hidden = [], []
        rows = self.ids_BT[: len(self.ids_BT) // len(PROMPTS)]
        for prompt in PROMPTS:
            prompts = torch.tensor([prompt] * len(rows))
            if model.config.is_encoder_decoder:
                given = {"input_ids": prompts, "decoder_input_ids": torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)}
            else:
                given = {"input_ids": torch.cat([prompts, rows], dim=1)}
            found: Any = model(**given, output_hidden_states=True, use_cache=False)
            states = found.decoder_hidden_states if model.config.is_encoder_decoder else found.hidden_states
            columns = slice(-self._max_tokens - 1, None)
            logits.append(found.logits[:, columns, : self._vocabulary])
            hidden.append(states[-1][:, columns])
        return torch.cat(logits), torch.cat(hidden)

    def token_logp(self, name: str, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the completions' tokens, (B, T), 0 after the last token."""
        logp = (self.logits[name][:, :-1] / temperature).log_softmax(-1)
        return torch.where(self.valid_BT, logp.gather(2, self.ids_BT.unsqueeze(2)).squeeze(2), 0.0)

    def divergence(self, divergence: TokenDivergence, other: str = "teacher") -> Tensor:
        """D(other, student) at each position, (B, T), 0 after the last token."""
        p, q = ((self.logits[name][:, :-1] / divergence.temperature).softmax(-1) for name in (other, "student"))
        if divergence.teacher_top_k is not None:
            top = p.topk(divergence.teacher_top_k).indices
            p, q = (torch.cat([x.gather(2, top), 1 - x.gather(2, top).sum(2, keepdim=True)], 2) for x in (p, q))
        a = divergence.parameter or 0.0
        value = plain_divergence(divergence.name.value, p, q, a)
        if divergence.scale is DivergenceScale.unit:
            value = value / (a * (1 - a) if divergence.name is DivergenceName.jsd else (1 - a) ** 2)
        return torch.where(self.valid_BT, value, 0.0)


def plain_divergence(name: str, p: Tensor, q: Tensor, a: float) -> Tensor:
    """The divergences as in the papers, from probabilities."""

    def kl(x: Tensor, y: Tensor) -> Tensor:
        return (x * (x / y).log()).sum(-1)

    mixture = a * p + (1 - a) * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: a * kl(p, mixture) + (1 - a) * kl(q, mixture),
        "tvd": lambda: (p - q).abs().sum(-1) / 2,
        "skew_kl": lambda: kl(p, mixture),
        "reverse_skew_kl": lambda: kl(q, a * q + (1 - a) * p),
    }[name]()


class Expectations:
    """Expectations over all batches; gradients flow through the probabilities unless `fixed`."""

    def __init__(self, oracle: Oracle, draws: Draws, rewards_B: Tensor, temperature: float = 1.0) -> None:
        self.oracle, self.draws, self.rewards_B = oracle, draws, rewards_B
        self.logp_BT = oracle.token_logp("student", temperature)
        self.initial_BT = oracle.token_logp("initial", temperature)
        self.probability = draws.probability(self.logp_BT.sum(dim=1).exp())
        self.initial_probability = draws.probability(self.initial_BT.sum(dim=1).exp())

    def mean(self, value_B: Tensor, *, fixed: bool = False) -> Tensor:
        """E of the batch mean of one value per completion."""
        probability = self.probability.detach() if fixed else self.probability
        return (probability * value_B[self.draws.indices].mean(dim=1)).sum()

    def divergence(self, divergence: TokenDivergence, reduction: DivergenceReduction, *, fixed: bool) -> Tensor:
        """E of the reduced divergence."""
        sum_B, rows = self.oracle.divergence(divergence).sum(dim=1), self.draws.indices
        if reduction is DivergenceReduction.sequence_sum:
            return self.mean(sum_B, fixed=fixed)
        if reduction is DivergenceReduction.sequence_mean:
            return self.mean(sum_B / self.oracle.lengths_B, fixed=fixed)
        probability = self.probability.detach() if fixed else self.probability
        return (probability * sum_B[rows].sum(dim=1) / self.oracle.lengths_B[rows].sum(dim=1)).sum()

    def reward(self) -> Tensor:
        """E[r]."""
        return self.mean(self.rewards_B)

    def bootstrapped(self, end_B: Tensor) -> Tensor:
        """E[r + 1(truncated) V(s_T)], V of the last state of a truncated completion, held fixed."""
        return self.mean(self.rewards_B + self.oracle.truncated_B * end_B)

    def kl(self) -> Tensor:
        """KL(p_S || p_0) of whole completions."""
        return self.mean((self.logp_BT - self.initial_BT).sum(dim=1))

    def forward_kl(self) -> Tensor:
        """KL(p_0 || p_S) of whole completions."""
        value_B = (self.initial_BT - self.logp_BT).sum(dim=1)
        return (self.initial_probability * value_B[self.draws.indices].mean(dim=1)).sum()

    def position_kl(self, name: DivergenceName) -> Tensor:
        """E[Σ_t KL between p_S and p_0 at position t] over the student's prefixes, held fixed."""
        return self.mean(self.oracle.divergence(TokenDivergence(name), "initial").sum(dim=1), fixed=True)

    def half_square(self) -> Tensor:
        """E[Σ_t 1/2 (log p_S - log p_0)²]."""
        return self.mean(((self.logp_BT - self.initial_BT) ** 2 / 2).sum(dim=1))

    def by_hand(self, advantages: Advantages, reduction: SurrogateReduction) -> Tensor:
        """E_stop of the reduced Σ_t A_t p(y_t) / stop(p(y_t)), batch by batch and token by token."""
        ratio_BT = (self.logp_BT - self.logp_BT.detach()).exp()
        total = torch.zeros((), dtype=torch.float64)
        for probability, rows in zip(self.probability.tolist(), self.draws.indices.tolist(), strict=True):
            lengths = [int(self.oracle.lengths_B[row]) for row in rows]
            weights = advantages([float(self.rewards_B[row]) for row in rows], lengths)
            for row, length, weight_T in zip(rows, lengths, weights, strict=True):
                divisor = {"sequence_sum": len(rows), "sequence_mean": len(rows) * length, "token_mean": sum(lengths)}
                value = (torch.tensor(weight_T, dtype=torch.float64) * ratio_BT[row, :length]).sum()
                total = total + probability * value / divisor[reduction.value]
        return total

    def clipped(self, clip: tuple[float, float]) -> Tensor:
        """E_{y ~ p_0}[Σ_t min(ρ r, clip(ρ) r)], ρ = p_S / p_0, for batches of one completion."""
        ratio_BT, r_B1 = (self.logp_BT - self.initial_BT).exp(), self.rewards_B.unsqueeze(1)
        held_BT = ratio_BT.clamp(1 - clip[0], 1 + clip[1])
        value_BT = torch.where(self.oracle.valid_BT, torch.minimum(ratio_BT * r_B1, held_BT * r_B1), 0.0)
        return (self.initial_probability.detach() * value_BT.sum(dim=1)[self.draws.indices[:, 0]]).sum()

    def end_values(self, head: nn.Module) -> Tensor:
        """V of the state after the last position."""
        return head.outer(torch.tanh(head.inner(self.oracle.states["student"][:, -1]))).squeeze(-1).detach()  # pyright: ignore

    def true_values(self, end_B: Tensor) -> Tensor:
        """E[r + 1(truncated) V_end | prefix] before each token and V_end after the last, (B, T + 1)."""
        p_B = self.logp_BT.sum(dim=1).exp().detach()
        worth_B = self.rewards_B + self.oracle.truncated_B * end_B
        size = len(p_B) // len(PROMPTS)
        table = end_B.unsqueeze(1).repeat(1, self.logp_BT.shape[1] + 1)
        for row, completion in enumerate(self.oracle.completions):
            for t in range(len(completion)):
                same = [
                    other
                    for other, text in enumerate(self.oracle.completions)
                    if text[:t] == completion[:t] and other // size == row // size
                ]
                table[row, t] = (p_B[same] * worth_B[same]).sum() / p_B[same].sum()
        return table
