"""The fused loss: hidden states -> loss, per-token terms and the gradient, in one pass over the vocabulary.

`FusedHead` returns terms for autograd and computes each chunk's logits again in the backward pass. Here the loss is a
given function of the terms (paper Eq. 5 as `objective.TokenLoss`), so the gradient is computed while a chunk's logits
exist. One projection of each model gives log-probability, divergence, entropy, and the gradients by hidden states,
output embedding and bias; policy gradient and divergence share all matrix products. One chunk of logits is alive at a
time. Loss and gradient equal those of `FusedHead` with autograd, up to rounding.

`fused_distillation_loss` is the divergence term alone, for training loops of other projects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceReduction
from gkd_rl.losses.compiled_head import CompiledHead, add_product, compiled, mark_dynamic_tokens
from gkd_rl.losses.divergence_gradients import dot
from gkd_rl.losses.divergences import TokenDivergence, autograd_gradient
from gkd_rl.losses.fused_head import FusedHead, check_shapes, scatter_valid
from gkd_rl.losses.objective import StepTotals, divisors
from gkd_rl.types import OutputHead, Projection, TeacherOutput, TokenTerms, TopLogProbs

# (log-probabilities (n,), divergences (n,) or None, slice of the N valid tokens) -> loss of these tokens, a scalar.
LossOfTokens = Callable[[Tensor, Tensor | None, slice], Tensor]
# Loss, log-probability, divergence (without one: the log-probability again) and entropy of a chunk.
_ChunkTerms = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class FusedLoss:
    """A head and the loss of its terms.

    Attributes:
        head: the configured head, with the size of a chunk.
        loss: of the tokens of one chunk; the loss of a batch is the sum over its chunks.
    """

    head: FusedHead
    loss: LossOfTokens

    def __call__(
        self, student: Projection, teacher: TeacherOutput | None, ids_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, TokenTerms]:
        """The loss, a scalar whose backward can run once, and the terms without gradient.

        Args and errors are those of `FusedHead`.
        """
        check_shapes(student, teacher, ids_BT)
        teacher_N = () if teacher is None else tuple(tensor[mask_BT] for tensor in teacher.tensors)
        loss, terms = self.of_tokens(student.hidden_BTD[mask_BT], student.head, teacher, teacher_N, ids_BT[mask_BT])
        logp, divergence, entropy = (scatter_valid(values_N, mask_BT) for values_N in terms)
        return loss, TokenTerms(logp, None if self.head.divergence is None else divergence, entropy)

    def of_tokens(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The loss of N tokens, and their terms; arguments and terms are those of `FusedHead.of_tokens`."""
        vocabulary = self.head.shared_vocabulary(student_head, teacher)
        chunks = self.head.chunks(ids_N, vocabulary)
        by_hidden_ND, by_head = torch.empty_like(student_ND), _HeadGradient.of(student_head, vocabulary, len(chunks))
        by_logits = self._compiled_gradient if self._uses_compiled_head(teacher, vocabulary) else self._eager_gradient
        parts: list[_ChunkTerms] = []
        with torch.no_grad():
            for rows in chunks:
                hidden_ND, teacher_chunk = student_ND[rows], tuple(tensor[rows] for tensor in teacher_N)
                logits_NV = student_head.logits(hidden_ND, vocabulary)
                terms, by_logits_NV = by_logits(logits_NV, student_head, teacher, teacher_chunk, ids_N[rows], rows)
                del logits_NV
                by_hidden_ND[rows] = by_head.add(student_head, hidden_ND, by_logits_NV)
                parts.append(terms)
                del by_logits_NV  # freed before the next chunk's is made
        losses, *terms = zip(*parts, strict=True)
        gradients = [by_hidden_ND, by_head.weight_VD, by_head.bias_V]
        loss = _KnownGradient.apply(
            torch.stack(losses).sum(), gradients, student_ND, student_head.weight_VD, student_head.bias_V
        )
        logp_N, divergence_N, entropy_N = (torch.cat(values) for values in terms)
        return loss, (logp_N, divergence_N, entropy_N)

    def _eager_gradient(
        self,
        logits_NV: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
        rows: slice,
    ) -> tuple[_ChunkTerms, Tensor]:
        """One chunk's terms, and the gradient (n, V) of its loss by `hidden @ weight.T + bias`."""
        logq_NV, q_NV = _softmax(logits_NV, self.head.temperature)
        logp_N, entropy_N = logq_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), -dot(q_NV, logq_NV)
        divergence_N, gradient_NV = self._divergence(logits_NV, (logq_NV, q_NV), teacher, teacher_N, ids_N)
        del logq_NV
        loss, by_logp_N, by_divergence_N = self._loss_gradient(logp_N, divergence_N, rows)
        if gradient_NV is None or by_divergence_N is None:
            gradient_NV = torch.zeros_like(q_NV) if gradient_NV is None else gradient_NV.zero_()
        else:
            gradient_NV.mul_(by_divergence_N.unsqueeze(1))
        if by_logp_N is not None:  # ∂log p(y)/∂z = (1[v = y] - q) / temperature
            by_logp_N1 = by_logp_N.unsqueeze(1) / self.head.temperature
            gradient_NV.addcmul_(q_NV, by_logp_N1, value=-1).scatter_add_(1, ids_N.unsqueeze(1), by_logp_N1)
        if student_head.softcap is not None:  # d softcap · tanh(z / softcap) / dz
            gradient_NV.mul_(1 - (logits_NV / student_head.softcap) ** 2)
        return (loss, logp_N, logp_N if divergence_N is None else divergence_N, entropy_N), gradient_NV

    def _uses_compiled_head(self, teacher: TeacherOutput | None, vocabulary: int) -> bool:
        """The compiled head has closed forms only."""
        divergence = self.head.divergence
        closed = divergence is None or divergence.has_closed_form(vocabulary)
        return self.head.compiled and closed and not isinstance(teacher, TopLogProbs)

    def _compiled_gradient(
        self,
        logits_NV: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
        rows: slice,
    ) -> tuple[_ChunkTerms, Tensor]:
        """The same as `_eager_gradient`, by `compiled_head`."""
        divergence, teacher_logits_NV = self.head.divergence, None
        if isinstance(teacher, Projection) and divergence is not None and divergence.needs_teacher:
            teacher_logits_NV = teacher.head.logits(teacher_N[0], logits_NV.shape[1])
        head = CompiledHead(divergence, self.head.temperature, student_head.softcap, student_head.weight_VD.dtype)
        mark_dynamic_tokens(logits_NV, teacher_logits_NV, ids_N)
        values, normalisers = compiled(CompiledHead.values)(head, logits_NV, teacher_logits_NV, ids_N)
        logp_N, entropy_N, divergence_N = values
        loss, *by = self._loss_gradient(logp_N, divergence_N, rows)
        mark_dynamic_tokens(*normalisers, *by)
        gradient_NV = compiled(CompiledHead.gradient)(head, logits_NV, teacher_logits_NV, ids_N, normalisers, *by)
        return (loss, logp_N, logp_N if divergence_N is None else divergence_N, entropy_N), gradient_NV

    def _loss_gradient(
        self, logp_N: Tensor, divergence_N: Tensor | None, rows: slice
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss of a chunk, and its gradients by log-probabilities and divergences; None where it uses neither."""
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in (logp_N, divergence_N) if one is not None]
            loss = self.loss(leaves[0], leaves[1] if len(leaves) == 2 else None, rows)
            by_logp_N, *by_divergence = torch.autograd.grad(loss, leaves, allow_unused=True)
        return loss.detach(), by_logp_N, by_divergence[0] if by_divergence else None

    def _divergence(
        self,
        logits_NV: Tensor,
        own: tuple[Tensor, Tensor],
        teacher: TeacherOutput | None,
        teacher_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The divergence of each token and its gradient by the student's logits; None without one.

        Args:
            logits_NV: of the student.
            own: the student's log-probabilities and probabilities at the sampling temperature.
            teacher: of which type the teacher's output is, and its head.
            teacher_N: the teacher's output at these tokens.
            ids_N: the tokens.
        """
        divergence = self.head.divergence
        if divergence is None:
            return None, None
        if isinstance(teacher, TopLogProbs):
            return autograd_gradient(
                lambda logits: divergence.from_top_log_probs(teacher_N[0], teacher_N[1], logits), logits_NV
            )
        if divergence.temperature != self.head.temperature:
            own = _softmax(logits_NV, divergence.temperature)
        teacher_logits_NV = None if teacher is None else teacher.head.logits(teacher_N[0], logits_NV.shape[1])
        return divergence.with_gradient(teacher_logits_NV, logits_NV, *own, ids_N)


def fused_distillation_loss(
    student: Projection,
    teacher: Projection,
    mask_BT: Tensor,
    divergence: TokenDivergence,
    reduction: DivergenceReduction = DivergenceReduction.sequence_mean,
    totals: StepTotals | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """The reduced divergence D(p_T || p_S) of a batch, for any PyTorch training loop (paper Eq. 2).

    Logits of both models exist for `chunk_tokens` positions at a time, also in the backward pass. Gradients flow to the
    student's hidden states, output embedding and bias; none flows to the teacher. Backward can run once.

    Args:
        student: hidden states (B, T, D) at the positions that predict the tokens, and the output head.
        teacher: the same positions of the teacher; its width may differ, its tokens may not.
        mask_BT: positions that count, bool.
        divergence: between both models' distributions at one position; cross-entropy is not one of them.
        reduction: from positions to one number.
        totals: sequences and positions of the whole optimiser step, if it is accumulated over several batches; the
            losses of the batches then add up to that of the step. None: those of this batch.
        chunk_tokens: None takes as many as fit into the memory of one chunk (`CHUNK_BYTES`).

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: the shapes do not agree, or the divergence does not compare with a teacher.
    """
    if not divergence.needs_teacher:
        raise ValueError(f"{divergence.name.value} compares the student with given tokens, not with a teacher.")
    if totals is None:
        totals = StepTotals(len(mask_BT), int(mask_BT.sum()))
    divisor_N = divisors(mask_BT, reduction, totals)[mask_BT]

    def of_chunk(_: Tensor, divergence_N: Tensor | None, tokens: slice) -> Tensor:
        assert divergence_N is not None
        return (divergence_N / divisor_N[tokens]).sum()

    head = FusedHead(divergence, divergence.temperature, chunk_tokens)
    any_ids_BT = torch.zeros_like(mask_BT, dtype=torch.long)
    return FusedLoss(head, of_chunk)(student, teacher, any_ids_BT, mask_BT)[0]


@dataclass
class _HeadGradient:
    """The gradient by the output head, summed over chunks in float32 or wider; None for parameters that are frozen.

    Attributes:
        weight_VD: by the output embedding.
        bias_V: by the bias.
        single_chunk: one chunk has the whole gradient of the output embedding. It is then the product itself, without a
            sum in float32; either way it is rounded once.
    """

    weight_VD: Tensor | None
    bias_V: Tensor | None
    single_chunk: bool

    @classmethod
    def of(cls, head: OutputHead, vocabulary: int, chunks: int) -> _HeadGradient:
        """Zeros, to which `chunks` chunks will be added.

        Args:
            head: the output head.
            vocabulary: number of tokens that have logits.
            chunks: how many will be added.
        """
        trained = head.weight_VD.requires_grad
        single_chunk = trained and chunks == 1 and vocabulary == len(head.weight_VD)

        def zeros(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad:
                return None
            return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))

        return cls(None if single_chunk else zeros(head.weight_VD), zeros(head.bias_V), single_chunk)

    def add(self, head: OutputHead, hidden_ND: Tensor, gradient_NV: Tensor) -> Tensor:
        """Add one chunk's gradient; returns the gradient by its hidden states, (N, D).

        Args:
            head: the output head.
            hidden_ND: its input.
            gradient_NV: of the loss by `hidden @ weight.T + bias`.
        """
        vocabulary = gradient_NV.shape[1]
        if self.bias_V is not None:
            self.bias_V[:vocabulary] += gradient_NV.sum(dim=0, dtype=self.bias_V.dtype)
        gradient_NV = gradient_NV.to(head.weight_VD.dtype)
        if self.single_chunk:
            self.weight_VD = gradient_NV.T @ (hidden_ND * head.scale)
        elif self.weight_VD is not None:
            add_product(self.weight_VD[:vocabulary], gradient_NV, hidden_ND * head.scale)
        return (gradient_NV @ head.weight_VD[:vocabulary]) * head.scale


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradients were computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        """The loss `value`; `gradients` are its gradients by `inputs`."""
        ctx.gradients = [
            None if one is None or gradient is None else gradient.to(one.dtype)
            for gradient, one in zip(gradients, inputs, strict=True)
        ]
        gradients.clear()
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each gradient times the upstream gradient, in place: backward can run once."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward through a fused loss can run once: its gradients are scaled in place.")
        return None, None, *(None if one is None else one.mul_(upstream) for one in gradients)


def _softmax(logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities."""
    logq_NV = torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)
    return logq_NV, logq_NV.exp()
