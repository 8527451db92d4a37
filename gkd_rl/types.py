"""Frozen values that flow forward through a training step.

Axis alphabet, used as suffixes of tensor names everywhere:
    P prompts    K rollouts per prompt    B = sequences (P * K for rollouts)
    S prompt tokens    T completion tokens    N valid completion tokens    D hidden width    V vocabulary

Completion masks and masked reductions. One rule: the first end-of-sequence token counts, what follows does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

FEW_ROWS, LARGE_MATRIX = 8, 2**22  # see `reads_few`


class Source(Enum):
    """Who wrote the completions of a step."""

    student = "student"
    dataset = "dataset"
    teacher = "teacher"


@dataclass(frozen=True)
class Example:
    """One row of a task. `columns` reaches the reward as keyword arguments."""

    prompt: str
    reference: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of a step, right-padded.

    Attributes:
        examples: the P rows.
        ids_PS: token ids.
        mask_PS: True on tokens, False on padding.
    """

    examples: Sequence[Example]
    ids_PS: Tensor
    mask_PS: Tensor


@dataclass(frozen=True)
class Rollout:
    """Completions of prompts; both terms of the objective read this one object.

    Attributes:
        prompts: the P prompts.
        prompt_index_B: which prompt each completion answers; completions of one prompt are neighbours.
        ids_BT: completion ids, right-padded, the end-of-sequence token included.
        mask_BT: True up to and including the first end-of-sequence token.
        truncated_B: True where the length limit came before the end-of-sequence token.
        texts: B decoded completions without special tokens.
        source: who wrote them.
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
        """One masked column more, (B, T + 1): its hidden states see the whole completion, also a truncated one."""
        return replace(
            self,
            ids_BT=torch.nn.functional.pad(self.ids_BT, (0, 1)),
            mask_BT=torch.nn.functional.pad(self.mask_BT, (0, 1)),
        )

    def with_shuffled_prompts(self) -> Rollout:
        """The same completions, each put to the next prompt of the step (the control of a teacher that is misled)."""
        prompts = self.prompts
        turned = PromptBatch(
            [*prompts.examples[1:], *prompts.examples[:1]], prompts.ids_PS.roll(-1, 0), prompts.mask_PS.roll(-1, 0)
        )
        return replace(self, prompts=turned)

    def rows(self, rows: Tensor) -> Rollout:
        """Some of the completions, in the given order, with the prompts they need, trimmed to their longest lengths.

        Args:
            rows: which, on any device; completions of one prompt are neighbours.
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
    """Columns up to the last one that any row uses; at least 1."""
    used = mask.any(dim=0).nonzero()
    return int(used.max()) + 1 if used.numel() else 1


def in_float32(tensor: Tensor) -> bool:
    """Products with it can be had in float32: on CUDA, in half precision."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16)


def reads_few(hidden_ND: Tensor, weight_VD: Tensor) -> bool:
    """The product is faster the other way round: 1.5 to 7 times for 2 to 8 rows of float32 on an AMD CPU (torch 2.13).

    The fewer rows, the more; one row is as fast either way, and a matrix that fits into the cache gains nothing.
    """
    kinds = hidden_ND.device.type == "cpu" and hidden_ND.dtype == weight_VD.dtype == torch.float32
    return kinds and len(hidden_ND) <= FEW_ROWS and weight_VD.numel() >= LARGE_MATRIX


@dataclass(frozen=True)
class OutputHead:
    """Hidden state -> logits: z = scale · (h @ weight.T) + bias, and cap · tanh(z / cap) where logits are capped.

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
        """Logits over the first `vocabulary` entries, in float32, shape (N, vocabulary).

        Without a gradient a GPU's products of half precision are not rounded to it, so that whoever reads a text sees
        the same log-probabilities: while it is written, before an update (PPO's ratio) and in `fused_loss`.
        """
        weight_VD = self.weight_VD[:vocabulary]
        bias = None if self.bias_V is None else self.bias_V[:vocabulary]
        hidden_ND = hidden_ND * self.scale
        if in_float32(weight_VD) and not torch.is_grad_enabled():
            logits = torch.mm(hidden_ND, weight_VD.T, out_dtype=torch.float32)
            logits = logits if bias is None else logits.add_(bias)
        elif reads_few(hidden_ND, weight_VD):
            logits = (weight_VD @ hidden_ND.T).T.contiguous()
            logits = logits if bias is None else logits + bias
        else:
            logits = torch.nn.functional.linear(hidden_ND, weight_VD, bias).float()
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Projection:
    """A model's hidden states at the positions that predict the completion, and the head that reads them."""

    hidden_BTD: Tensor
    head: OutputHead

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What has one row for each position."""
        return (self.hidden_BTD,)


@dataclass(frozen=True)
class TopLogProbs:
    """A model's K likeliest words at the positions that predict the completion: all that a server tells of it.

    Attributes:
        ids_BTK: their ids, each once.
        logp_BTK: their log-probabilities among all words, at temperature 1.
    """

    ids_BTK: Tensor
    logp_BTK: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What has one row for each position."""
        return self.ids_BTK, self.logp_BTK


TeacherOutput = Projection | TopLogProbs


@dataclass(frozen=True)
class TokenTerms:
    """Per-token numbers of one pass over the vocabulary; exactly 0 where masked.

    Attributes:
        logp_BT: log-probability of the completion's token at the sampling temperature.
        divergence_BT: divergence to the teacher (or cross-entropy), None when it is not computed.
        entropy_BT: entropy of the student's distribution in nats, without gradient.
    """

    logp_BT: Tensor
    divergence_BT: Tensor | None
    entropy_BT: Tensor


@dataclass(frozen=True)
class PreUpdateTerms:
    """What the models say of the whole step before its first update; None where nothing needs it.

    Attributes:
        logp_BT: log-probabilities of the student.
        divergence_BT: divergence to the teacher.
        initial_logp_BT: log-probabilities of the initial student.
        values_BT1: value before each token and after the last.
    """

    logp_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    initial_logp_BT: Tensor | None = None
    values_BT1: Tensor | None = None


@dataclass(frozen=True)
class Credits:
    """Weights of the score function at each token, and what else a step knows before its first update; no gradient.

    Attributes:
        reward_BT: advantages; None when the step has no reward term.
        divergence_BT: credit for the divergence; None when no gradient flows through sampling (the paper).
        old_logp_BT: log-probabilities before the first update on this rollout; None in the first epoch.
        initial_logp_BT: of the initial student, None when nothing reads them.
    """

    reward_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    old_logp_BT: Tensor | None = None
    initial_logp_BT: Tensor | None = None

    def rows(self, rows: Tensor, width: int) -> Credits:
        """Those of some completions, first `width` tokens."""
        return Credits(
            **{
                name: None if value is None else value[rows, :width]
                for name, value in ((item.name, getattr(self, item.name)) for item in fields(self))
            }
        )


@dataclass(frozen=True)
class LossTerms:
    """What one micro-batch adds to the two terms of the step, to be minimised.

    Attributes:
        reward: surrogate of -E[r]; None without a reward.
        divergence: reduced D, with its score-function term if it has one; None without a teacher.
        divergence_value: reduced D alone, without gradient.
        clipped_tokens: tokens that the PPO clip leaves without gradient.
    """

    reward: Tensor | None
    divergence: Tensor | None
    divergence_value: Tensor | None
    clipped_tokens: Tensor

    def loss(self, alpha: float) -> Tensor:
        """(1 - alpha) * reward + alpha * divergence, of the terms that there are."""
        terms = [(1 - alpha, self.reward), (alpha, self.divergence)]
        return sum((weight * term for weight, term in terms if term is not None), start=torch.zeros(()))


def completion_mask(ids_BT: Tensor, eos_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mask up to and including the first end-of-sequence token.

    Args:
        ids_BT: completion ids, shape (B, T).
        eos_ids: ids that end a sequence.

    Returns:
        mask_BT (bool), and truncated_B (bool): rows without an end-of-sequence token.
    """
    is_eos = torch.isin(ids_BT, torch.tensor(list(eos_ids), device=ids_BT.device))
    seen_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return seen_before == 0, ~is_eos.any(dim=1)


def shift_right(ids_BT: Tensor, start_id: int) -> Tensor:
    """Decoder inputs that predict `ids_BT`: the start token, then all but the last token. Shape (B, T)."""
    return torch.cat([torch.full_like(ids_BT[:, :1], start_id), ids_BT[:, :-1]], dim=1)


def sequence_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over each row's valid tokens, shape (B,)."""
    return torch.where(mask_BT, values_BT, 0).sum(dim=1)


def sequence_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over each row's valid tokens, shape (B,); 0 for a row without any."""
    return sequence_sum(values_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1)
