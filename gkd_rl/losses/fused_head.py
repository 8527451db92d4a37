"""Hidden states -> log-probability of the sampled token, divergence and entropy, without a B x T x V tensor.

One projection of each model serves all three outputs. Only valid completion positions are projected, `chunk_tokens` at
a time; with more than one chunk, a chunk's logits are recomputed in the backward pass, so at most one chunk of logits
is alive at any time. Autograd differentiates the numbers, whatever becomes of them; where the loss is known beforehand,
`fused_loss` has the same gradient without computing logits twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.types import OutputHead, Projection, TeacherOutput, TokenTerms, TopLogProbs

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**31}  # of the (N, V) tensors of one chunk, where no number of tokens is set
CHUNK_TENSORS = 12  # that are alive at one time at most, in float32 (tests/losses/test_fused_loss.py counts them)
CHUNK_TENSORS_COMPILED = 3  # logits of both models and a gradient
LEAST_TOKENS = 16


@dataclass(frozen=True)
class FusedHead:
    """The configured head.

    Attributes:
        divergence: None computes none (alpha = 0).
        temperature: of the sampling; the log-probability is that of the sampled distribution.
        chunk_tokens: positions whose logits exist at one time; None: as many as fit in CHUNK_BYTES.
        vocabulary: words that can be sampled; embeddings beyond them (padding of the matrix) have no probability.
            None: all that both models have.
        compiled: `fused_loss` compiles what it does with a chunk's logits (a GPU's kernels read them fewer times).
    """

    divergence: TokenDivergence | None
    temperature: float = 1.0
    chunk_tokens: int | None = None
    vocabulary: int | None = None
    compiled: bool = False

    def __call__(
        self, student: Projection, teacher: TeacherOutput | None, ids_BT: Tensor, mask_BT: Tensor
    ) -> TokenTerms:
        """Per-token terms of the completions.

        Args:
            student: hidden states that predict `ids_BT`, shape (B, T, D), with gradient.
            teacher: the same of the teacher, without gradient, its own width, or its likeliest words; None when no
                divergence needs it.
            ids_BT: completion ids.
            mask_BT: valid positions.

        Returns:
            TokenTerms, 0 at masked positions. A fully masked batch gives zeros with a graph.

        Raises:
            ValueError: hidden states and ids do not agree in B and T.
        """
        check_shapes(student, teacher, ids_BT)
        student_ND = student.hidden_BTD[mask_BT]
        told_N = () if teacher is None else tuple(tensor[mask_BT] for tensor in teacher.tensors)
        ids_N = ids_BT[mask_BT]
        parts = self.of_tokens(student_ND, student.head, teacher, told_N, ids_N)
        logp, divergence, entropy = (spread(values_N, mask_BT) for values_N in parts)
        return TokenTerms(logp, None if self.divergence is None else divergence, entropy.detach())

    def of_tokens(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log-probability, divergence (or log-probability again without one) and entropy of N tokens, each (N,).

        Args:
            student_ND: hidden states that predict the tokens.
            student_head: of the student.
            teacher: what kind of teacher tells.
            told_N: what it tells of these tokens.
            ids_N: the tokens.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        chunks = self.chunks(ids_N, self.shared_vocabulary(student_head, teacher))
        for rows in chunks:
            arguments = (
                student_ND[rows],
                student_head,
                teacher,
                tuple(tensor[rows] for tensor in told_N),
                ids_N[rows],
            )
            if len(chunks) > 1 and torch.is_grad_enabled():
                parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False))  # pyright: ignore[reportArgumentType]
            else:
                parts.append(self._chunk(*arguments))
        logp_N, divergence_N, entropy_N = (torch.cat(values) for values in zip(*parts, strict=True))
        return logp_N, divergence_N, entropy_N

    def _chunk(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log-probability, divergence and entropy of one chunk, each of shape (n,)."""
        vocabulary, teacher_logits = self.shared_vocabulary(student_head, teacher), None
        if isinstance(teacher, Projection):
            with torch.no_grad():
                teacher_logits = teacher.head.logits(told_N[0], vocabulary)
        student_logits = student_head.logits(student_ND, vocabulary)
        logp_NV = torch.log_softmax(student_logits / self.temperature, dim=-1)
        logp = logp_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            entropy = -(logp_NV.exp() * logp_NV).sum(dim=-1)
        divergence = logp
        if self.divergence is not None and isinstance(teacher, TopLogProbs):
            divergence = self.divergence.to_top(told_N[0], told_N[1], student_logits)
        elif self.divergence is not None:
            divergence = self.divergence(teacher_logits, student_logits, ids_N)
        return logp, divergence, entropy

    def chunks(self, ids_N: Tensor, vocabulary: int) -> list[slice]:
        """Which tokens' logits exist at one time: parts of nearly one size; one empty part where there is no token."""
        tokens, most = len(ids_N), self.chunk_tokens
        if most is None:
            budget = CHUNK_BYTES.get(ids_N.device.type, CHUNK_BYTES["cuda"])
            tensors = CHUNK_TENSORS_COMPILED if self.compiled else CHUNK_TENSORS
            most = max(LEAST_TOKENS, budget // (4 * tensors * vocabulary))
        size = -(-tokens // max(1, -(-tokens // most)))
        return [slice(start, start + size) for start in range(0, max(tokens, 1), max(size, 1))]

    def shared_vocabulary(self, student_head: OutputHead, teacher: TeacherOutput | None) -> int:
        """Words that both models can say: embeddings are padded to other sizes."""
        sizes = [student_head.weight_VD.shape[0]]
        if self.vocabulary is not None:
            sizes.append(self.vocabulary)
        if isinstance(teacher, Projection):
            sizes.append(teacher.head.weight_VD.shape[0])
        return min(sizes)


def check_shapes(student: Projection, teacher: TeacherOutput | None, ids_BT: Tensor) -> None:
    """Refuse states that are not those of the completions.

    Raises:
        ValueError: hidden states and ids do not agree in B and T.
    """
    for name, given in (("student", student), ("teacher", teacher)):
        for tensor in () if given is None else given.tensors:
            if tensor.shape[:2] != ids_BT.shape:
                kind = "hidden states" if isinstance(given, Projection) else "likeliest words"
                raise ValueError(
                    f"{name} {kind} {tuple(tensor.shape)} do not fit completion ids {tuple(ids_BT.shape)}."
                )


def spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Put one value per valid position back into (B, T), 0 elsewhere."""
    return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)
