"""Values that flow through a training step, frozen, in the order in which a step makes them.

    Example, PromptBatch -> Rollout -> Projection or TopLogProbs -> PreUpdateTerms -> Credits -> TokenTerms -> LossTerms

At the end: completion masks and masked reductions. A completion ends with its first end-of-sequence token, which counts
as a token of the completion; what follows it is masked.

Suffixes of tensor names give their axes, everywhere in this package:
    P prompts    K rollouts per prompt    B = sequences (P * K for rollouts)
    S prompt tokens    T completion tokens    N valid completion tokens    D hidden width    V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Credits",
    "Example",
    "LossTerms",
    "OutputHead",
    "PreUpdateTerms",
    "Projection",
    "PromptBatch",
    "Rollout",
    "Source",
    "TokenTerms",
    "TopLogProbs",
    "completion_mask",
    "sequence_mean",
    "sequence_sum",
]
FEW_ROWS, LARGE_MATRIX = 8, 2**22  # rows and elements, see `transposed_is_faster`


class Source(Enum):
    """Where the completions of a step come from."""

    student = "student"
    dataset = "dataset"
    teacher = "teacher"


@dataclass(frozen=True)
class Example:
    """One row of a task's data set; `columns` are passed to the reward as keyword arguments."""

    prompt: str
    reference: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of a step, right-padded.

    Attributes:
        examples: the P rows of the data set.
        ids_PS: token ids.
        mask_PS: True on tokens, False on padding.
    """

    examples: Sequence[Example]
    ids_PS: Tensor
    mask_PS: Tensor


@dataclass(frozen=True)
class Rollout:
    """Completions of prompts, sampled once and used by both terms of the objective.

    Attributes:
        prompts: the P prompts.
        prompt_index_B: index of each completion's prompt; completions of one prompt are adjacent.
        ids_BT: completion ids, right-padded, the end-of-sequence token included.
        mask_BT: True up to and including the first end-of-sequence token.
        truncated_B: True where the length limit came before an end-of-sequence token.
        texts: B decoded completions without special tokens.
        source: the student, the data set or the teacher.
    """

    prompts: PromptBatch
    prompt_index_B: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    truncated_B: Tensor
    texts: Sequence[str]
    source: Source

    @property
    def n_sequences(self) -> int:
        """B."""
        return self.ids_BT.shape[0]

    def extended(self) -> Rollout:
        """The same rollout with one masked column more, (B, T + 1).

        The hidden state of that column follows the whole completion: the value head estimates V(end) from it.
        """
        return replace(
            self,
            ids_BT=torch.nn.functional.pad(self.ids_BT, (0, 1)),
            mask_BT=torch.nn.functional.pad(self.mask_BT, (0, 1)),
        )

    def with_shuffled_prompts(self) -> Rollout:
        """The same completions, each with the next prompt of the step: the control teacher.prompts=shuffled."""
        prompts = self.prompts
        rolled = PromptBatch(
            [*prompts.examples[1:], *prompts.examples[:1]], prompts.ids_PS.roll(-1, 0), prompts.mask_PS.roll(-1, 0)
        )
        return replace(self, prompts=rolled)

    def rows(self, rows: Tensor) -> Rollout:
        """A micro-batch: some of the completions with their prompts, both trimmed to the longest row.

        Args:
            rows: indices of the completions, on any device; completions of one prompt are adjacent.
        """
        order: list[int] = rows.tolist()
        prompts, index_B = self.prompt_index_B[rows].unique(return_inverse=True)
        mask_PS, mask_BT = self.prompts.mask_PS[prompts], self.mask_BT[rows]
        width_S, width_T = _used_width(mask_PS), _used_width(mask_BT)
        return Rollout(
            prompts=PromptBatch(
                [self.prompts.examples[i] for i in prompts.tolist()],
                self.prompts.ids_PS[prompts, :width_S],
                mask_PS[:, :width_S],
            ),
            prompt_index_B=index_B,
            ids_BT=self.ids_BT[rows, :width_T],
            mask_BT=mask_BT[:, :width_T],
            truncated_B=self.truncated_B[rows],
            texts=[self.texts[i] for i in order],
            source=self.source,
        )


def _used_width(mask: Tensor) -> int:
    """Number of columns up to the last one that is True in any row; at least 1."""
    used = mask.any(dim=0).nonzero()
    return int(used.max()) + 1 if used.numel() else 1


def has_float32_product(tensor: Tensor) -> bool:
    """Whether torch can return matrix products of this half-precision tensor in float32: on CUDA only."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def transposed_is_faster(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    """Whether (weight @ hidden.T).T is faster than hidden @ weight.T: few rows, a large float32 matrix, on a CPU.

    Measured on an AMD CPU with torch 2.13: 1.5 to 7 times faster for 8 to 2 rows. There is no gain for one row, or for
    a matrix that fits into the cache.
    """
    float32_on_cpu = hidden_ND.device.type == "cpu" and hidden_ND.dtype == weight_VD.dtype == torch.float32
    return float32_on_cpu and len(hidden_ND) <= FEW_ROWS and weight_VD.numel() >= LARGE_MATRIX


@dataclass(frozen=True)
class OutputHead:
    """The output head: z = scale · (h @ weight.T) + bias, and cap · tanh(z / cap) where logits are soft-capped.

    Attributes:
        weight_VD: output embedding.
        bias_V: additive bias, if the model has one.
        scale: d_model^-0.5 of T5 v1.0's tied head, Cohere's logit_scale, 1 / Granite's logits_scaling; else 1.
        softcap: Gemma's final_logit_softcapping; None without one.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: Tensor, vocabulary: int) -> Tensor:
        """Logits of the first `vocabulary` tokens in float32, shape (N, vocabulary).

        Without gradient, half-precision products on CUDA stay in float32. Sampling, the pre-update pass (PPO's ratio)
        and `fused_loss` then compute the same log-probabilities of one completion.

        Args:
            hidden_ND: hidden states.
            vocabulary: number of tokens, at most V.
        """
        weight_VD = self.weight_VD[:vocabulary]
        bias = None if self.bias_V is None else self.bias_V[:vocabulary]
        hidden_ND = hidden_ND * self.scale
        if has_float32_product(weight_VD) and not torch.is_grad_enabled():
            logits = torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
            logits = logits if bias is None else logits.add_(bias)
        elif transposed_is_faster(hidden_ND, weight_VD):
            logits = (weight_VD @ hidden_ND.T).T.contiguous()
            logits = logits if bias is None else logits + bias
        else:
            logits = torch.nn.functional.linear(hidden_ND, weight_VD, bias).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Projection:
    """A model's hidden states at the positions that predict the completion's tokens, and its output head."""

    hidden_BTD: Tensor
    head: OutputHead

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors with axes (B, T)."""
        return (self.hidden_BTD,)


@dataclass(frozen=True)
class TopLogProbs:
    """The K most probable tokens at the positions that predict the completion's tokens: the output of a remote teacher.

    Attributes:
        ids_BTK: token ids, distinct at each position.
        logp_BTK: their log-probabilities under the full distribution, at temperature 1.
    """

    ids_BTK: Tensor
    logp_BTK: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors with axes (B, T)."""
        return self.ids_BTK, self.logp_BTK


TeacherOutput = Projection | TopLogProbs


@dataclass(frozen=True)
class PreUpdateTerms:
    """Results of the pre-update pass over the whole step, without gradient; None where the step needs no such term.

    Attributes:
        logp_BT: log-probabilities of the completion's tokens under the student.
        divergence_BT: divergence to the teacher in nats.
        initial_logp_BT: log-probabilities under the initial student.
        values_BT1: the value head's estimates before each token and after the last, shape (B, T + 1).
    """

    logp_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    initial_logp_BT: Tensor | None = None
    values_BT1: Tensor | None = None


@dataclass(frozen=True)
class Credits:
    """Weights of the score function at each token, fixed before the step's first update; no gradient.

    Attributes:
        reward_BT: advantages; None when the step has no reward term.
        divergence_BT: credit for the divergence (`kd_credit`); None when no gradient flows through sampling (paper).
        old_logp_BT: log-probabilities before the first update on this rollout; None in the first epoch.
        initial_logp_BT: log-probabilities under the initial student; None without a KL to it.
    """

    reward_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    old_logp_BT: Tensor | None = None
    initial_logp_BT: Tensor | None = None

    def rows(self, rows: Tensor, width: int) -> Credits:
        """The credits of a micro-batch.

        Args:
            rows: indices of its completions.
            width: T of the micro-batch.
        """
        return Credits(
            **{
                name: None if value is None else value[rows, :width]
                for name, value in ((item.name, getattr(self, item.name)) for item in fields(self))
            }
        )


@dataclass(frozen=True)
class TokenTerms:
    """Per-token results of one pass over the vocabulary; exactly 0 where masked.

    Attributes:
        logp_BT: log-probability of the completion's token at the sampling temperature.
        divergence_BT: divergence to the teacher (or cross-entropy) in nats; None where it is not computed.
        entropy_BT: entropy of the student's distribution in nats, without gradient.
    """

    logp_BT: Tensor
    divergence_BT: Tensor | None
    entropy_BT: Tensor


@dataclass(frozen=True)
class LossTerms:
    """One micro-batch's share of the two terms of paper Eq. 5, with signs for minimisation; scalars.

    Attributes:
        reward: surrogate loss of -E[r]; None without a reward.
        divergence: reduced D, plus its score-function term with `kd_credit`; None without a divergence.
        divergence_value: reduced D alone, without gradient.
        clipped_tokens: number of tokens without gradient because of the PPO clip.
    """

    reward: Tensor | None
    divergence: Tensor | None
    divergence_value: Tensor | None
    clipped_tokens: Tensor

    def loss(self, alpha: float) -> Tensor:
        """(1 - alpha) * reward + alpha * divergence (minus paper Eq. 5); a term that is None counts 0."""
        terms = [(1 - alpha, self.reward), (alpha, self.divergence)]
        return sum((weight * term for weight, term in terms if term is not None), start=torch.zeros(()))


def completion_mask(ids_BT: Tensor, eos_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mask of each completion's valid tokens, and which completions are truncated.

    Args:
        ids_BT: completion ids, shape (B, T).
        eos_ids: end-of-sequence ids.

    Returns:
        mask_BT: bool, True up to and including the first end-of-sequence token.
        truncated_B: bool, True for rows without an end-of-sequence token.
    """
    is_eos = torch.isin(ids_BT, torch.tensor(list(eos_ids), device=ids_BT.device))
    seen_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return seen_before == 0, ~is_eos.any(dim=1)


def shift_right(ids_BT: Tensor, start_id: int) -> Tensor:
    """Decoder inputs for teacher forcing: the start token, then all but the last token of `ids_BT`. Shape (B, T)."""
    return torch.cat([torch.full_like(ids_BT[:, :1], start_id), ids_BT[:, :-1]], dim=1)


def sequence_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over each row's valid tokens, shape (B,)."""
    return torch.where(mask_BT, values_BT, 0).sum(dim=1)


def sequence_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over each row's valid tokens, shape (B,); 0 for a row without any."""
    return sequence_sum(values_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1)
