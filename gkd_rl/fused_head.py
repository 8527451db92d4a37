"""Hidden states -> log-probability of the sampled token, divergence and entropy, without a B x T x V tensor.

One projection of each model serves all three outputs. Only valid completion positions are projected, `chunk_tokens` at
a time; with more than one chunk, a chunk's logits are recomputed in the backward pass, so at most one chunk of logits
is alive at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gkd_rl.divergence import TokenDivergence
from gkd_rl.types import OutputHead, Projection, TokenTerms


@dataclass(frozen=True)
class FusedHead:
    """The configured head.

    Attributes:
        divergence: None computes none (alpha = 0).
        temperature: of the sampling; the log-probability is that of the sampled distribution.
        chunk_tokens: positions whose logits exist at one time.
        vocabulary: words that can be sampled; embeddings beyond them (padding of the matrix) have no probability.
            None: all that both models have.
    """

    divergence: TokenDivergence | None
    temperature: float = 1.0
    chunk_tokens: int = 4096
    vocabulary: int | None = None

    def __call__(self, student: Projection, teacher: Projection | None, ids_BT: Tensor, mask_BT: Tensor) -> TokenTerms:
        """Per-token terms of the completions.

        Args:
            student: hidden states that predict `ids_BT`, shape (B, T, D), with gradient.
            teacher: the same of the teacher, without gradient, its own width; None when no divergence needs it.
            ids_BT: completion ids.
            mask_BT: valid positions.

        Returns:
            TokenTerms, 0 at masked positions. A fully masked batch gives zeros with a graph.

        Raises:
            ValueError: hidden states and ids do not agree in B and T.
        """
        for name, projection in (("student", student), ("teacher", teacher)):
            if projection is not None and projection.hidden_BTD.shape[:2] != ids_BT.shape:
                raise ValueError(
                    f"{name} hidden states {tuple(projection.hidden_BTD.shape)} do not fit completion ids "
                    f"{tuple(ids_BT.shape)}."
                )
        student_ND = student.hidden_BTD[mask_BT]
        teacher_ND = None if teacher is None else teacher.hidden_BTD[mask_BT]
        ids_N = ids_BT[mask_BT]
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, max(ids_N.numel(), 1), self.chunk_tokens):
            rows = slice(start, start + self.chunk_tokens)
            arguments = (
                student_ND[rows],
                student.head,
                None if teacher_ND is None else teacher_ND[rows],
                None if teacher is None else teacher.head,
                ids_N[rows],
            )
            if ids_N.numel() > self.chunk_tokens and torch.is_grad_enabled():
                parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False))  # pyright: ignore[reportArgumentType]
            else:
                parts.append(self._chunk(*arguments))
        logp, divergence, entropy = (_spread(torch.cat(values), mask_BT) for values in zip(*parts, strict=True))
        return TokenTerms(logp, None if self.divergence is None else divergence, entropy.detach())

    def _chunk(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher_ND: Tensor | None,
        teacher_head: OutputHead | None,
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log-probability, divergence and entropy of one chunk, each of shape (n,)."""
        vocabulary = student_head.weight_VD.shape[0]
        vocabulary = vocabulary if self.vocabulary is None else min(vocabulary, self.vocabulary)
        teacher_logits = None
        if teacher_ND is not None and teacher_head is not None:
            vocabulary = min(vocabulary, teacher_head.weight_VD.shape[0])  # padded embeddings: the shared part
            with torch.no_grad():
                teacher_logits = teacher_head.logits(teacher_ND, vocabulary)
        student_logits = student_head.logits(student_ND, vocabulary)
        logp_NV = torch.log_softmax(student_logits / self.temperature, dim=-1)
        logp = logp_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            entropy = -(logp_NV.exp() * logp_NV).sum(dim=-1)
        divergence = logp if self.divergence is None else self.divergence(teacher_logits, student_logits, ids_N)
        return logp, divergence, entropy


def _spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put one value per valid position back into (B, T), 0 elsewhere."""
    return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)
