"""The fused head: hidden states -> log-probability of the sampled token, divergence and entropy, chunk by chunk.

These are the per-token terms of paper Eq. 5. One projection of each model serves all three outputs, and no (B, T, V)
tensor exists: only valid completion positions are projected, `chunk_tokens` at a time. With more than one chunk the
logits of a chunk are recomputed in the backward pass, so at most one chunk of logits is alive at any time.

The terms are differentiable by autograd, whatever loss is made of them. Where the loss is known in the forward pass,
`fused_loss` computes the same gradient without computing logits twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.types import OutputHead, Projection, TeacherOutput, TokenTerms, TopLogProbs

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**31}  # for all (N, V) tensors of one chunk, where chunk_tokens is None
CHUNK_TENSORS = 12  # float32 (N, V) tensors alive at one time, at most (counted in tests/losses/test_fused_loss.py)
CHUNK_TENSORS_COMPILED = 3  # logits of both models and a gradient
MIN_CHUNK_TOKENS = 16


@dataclass(frozen=True)
class FusedHead:
    """The configured head.

    Attributes:
        divergence: None computes none (alpha = 0).
        temperature: of the sampling; log-probabilities and entropy are those of the sampled distribution.
        chunk_tokens: positions whose logits exist at one time; None: as many as fit in CHUNK_BYTES.
        vocabulary: number of tokens that can be sampled; rows of the embedding beyond them (padding of the matrix) have
            no probability. None: the smaller of both models' embeddings.
        compiled: `fused_loss` uses `compiled_head`, which reads a chunk's logits fewer times on CUDA.
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
            teacher: hidden states of the teacher, of its own width, or its most probable tokens, without gradient; None
                where the divergence needs no teacher.
            ids_BT: completion ids.
            mask_BT: valid positions.

        Returns:
            TokenTerms, 0 at masked positions. For a fully masked batch they are zeros with a graph.

        Raises:
            ValueError: hidden states and ids do not agree in B and T.
        """
        check_shapes(student, teacher, ids_BT)
        student_ND = student.hidden_BTD[mask_BT]
        teacher_N = () if teacher is None else tuple(tensor[mask_BT] for tensor in teacher.tensors)
        ids_N = ids_BT[mask_BT]
        parts = self.of_tokens(student_ND, student.head, teacher, teacher_N, ids_N)
        logp, divergence, entropy = (scatter_valid(values_N, mask_BT) for values_N in parts)
        return TokenTerms(logp, None if self.divergence is None else divergence, entropy.detach())

    def of_tokens(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, divergence (without one: the log-probability again) and entropy of N tokens, each (N,).

        Args:
            student_ND: hidden states that predict the tokens.
            student_head: of the student.
            teacher: of which type the teacher's output is, and its head.
            teacher_N: the teacher's output at these tokens, `teacher.tensors` with one axis N in place of (B, T).
            ids_N: the tokens.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        chunks = self.chunks(ids_N, self.shared_vocabulary(student_head, teacher))
        for rows in chunks:
            arguments = (
                student_ND[rows],
                student_head,
                teacher,
                tuple(tensor[rows] for tensor in teacher_N),
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
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for one chunk."""
        vocabulary, teacher_logits = self.shared_vocabulary(student_head, teacher), None
        if isinstance(teacher, Projection):
            with torch.no_grad():
                teacher_logits = teacher.head.logits(teacher_N[0], vocabulary)
        student_logits = student_head.logits(student_ND, vocabulary)
        logp_NV = torch.log_softmax(student_logits / self.temperature, dim=-1)
        logp = logp_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            entropy = -(logp_NV.exp() * logp_NV).sum(dim=-1)
        divergence = logp
        if self.divergence is not None and isinstance(teacher, TopLogProbs):
            divergence = self.divergence.from_top_log_probs(teacher_N[0], teacher_N[1], student_logits)
        elif self.divergence is not None:
            divergence = self.divergence(teacher_logits, student_logits, ids_N)
        return logp, divergence, entropy

    def chunks(self, ids_N: Tensor, vocabulary: int) -> list[slice]:
        """The tokens whose logits exist at one time: chunks of nearly equal size; one empty chunk for no tokens."""
        tokens, most = len(ids_N), self.chunk_tokens
        if most is None:
            budget = CHUNK_BYTES.get(ids_N.device.type, CHUNK_BYTES["cuda"])
            tensors = CHUNK_TENSORS_COMPILED if self.compiled else CHUNK_TENSORS
            most = max(MIN_CHUNK_TOKENS, budget // (4 * tensors * vocabulary))
        size = -(-tokens // max(1, -(-tokens // most)))
        return [slice(start, start + size) for start in range(0, max(tokens, 1), max(size, 1))]

    def shared_vocabulary(self, student_head: OutputHead, teacher: TeacherOutput | None) -> int:
        """Number of tokens that both models have: embeddings may be padded to different sizes."""
        sizes = [student_head.weight_VD.shape[0]]
        if self.vocabulary is not None:
            sizes.append(self.vocabulary)
        if isinstance(teacher, Projection):
            sizes.append(teacher.head.weight_VD.shape[0])
        return min(sizes)


def check_shapes(student: Projection, teacher: TeacherOutput | None, ids_BT: Tensor) -> None:
    """Refuse model outputs whose axes are not those of the completions.

    Raises:
        ValueError: they do not agree with the ids in B and T.
    """
    for name, given in (("student", student), ("teacher", teacher)):
        for tensor in () if given is None else given.tensors:
            if tensor.shape[:2] != ids_BT.shape:
                kind = "hidden states" if isinstance(given, Projection) else "most probable tokens"
                raise ValueError(
                    f"{name} {kind} {tuple(tensor.shape)} do not fit completion ids {tuple(ids_BT.shape)}."
                )


def scatter_valid(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """One value per valid position, put into shape (B, T) with 0 elsewhere."""
    return values_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, values_N)
