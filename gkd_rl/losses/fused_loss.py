"""Hidden states -> loss, per-token numbers and the gradient, in one pass over the vocabulary.

`FusedHead` gives numbers that autograd differentiates, and has to compute a chunk's logits again in the backward pass.
Here the loss of each token is known while its logits exist, so that one projection of each model gives everything:
log-probability, divergence, entropy, and the gradients of hidden states, output embedding and bias. One chunk of logits
is alive at a time. Policy gradient and divergence share every product with a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkd_rl.losses.compiled_head import Reading, add_product, any_number, compiled
from gkd_rl.losses.divergence_gradients import dot
from gkd_rl.losses.divergences import gradient_of
from gkd_rl.losses.fused_head import FusedHead, check_shapes, spread
from gkd_rl.types import OutputHead, Projection, TeacherOutput, TokenTerms, TopLogProbs

LossOfTokens = Callable[[Tensor, Tensor | None, slice], Tensor]


@dataclass(frozen=True)
class FusedLoss:
    """The loss of a head's numbers.

    Attributes:
        head: what is computed, and how many tokens at a time.
        loss: of some tokens by their log-probabilities (n,) and divergences (n,) or None; the slice says which of the N
            valid tokens they are. The loss of all is the sum over such parts.
    """

    head: FusedHead
    loss: LossOfTokens

    def __call__(
        self, student: Projection, teacher: TeacherOutput | None, ids_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, TokenTerms]:
        """The loss, ready for backward, and the terms without gradient; arguments and errors are `FusedHead`'s."""
        check_shapes(student, teacher, ids_BT)
        told_N = () if teacher is None else tuple(tensor[mask_BT] for tensor in teacher.tensors)
        loss, numbers = self.of_tokens(student.hidden_BTD[mask_BT], student.head, teacher, told_N, ids_BT[mask_BT])
        logp, divergence, entropy = (spread(values_N, mask_BT) for values_N in numbers)
        return loss, TokenTerms(logp, None if self.head.divergence is None else divergence, entropy)

    def of_tokens(
        self,
        student_ND: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The loss of N tokens; their log-probability, divergence (without one: log-probability) and entropy."""
        vocabulary = self.head.shared_vocabulary(student_head, teacher)
        chunks = self.head.chunks(ids_N, vocabulary)
        gradient_ND, sums = torch.empty_like(student_ND), _HeadGradient.of(student_head, vocabulary, len(chunks))
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for rows in chunks:
                hidden_ND, told = student_ND[rows], tuple(tensor[rows] for tensor in told_N)
                logits_NV = student_head.logits(hidden_ND, vocabulary)
                of_logits = self._in_two_readings if self._takes_two(teacher, vocabulary) else self._of_logits
                numbers, slope_NV = of_logits(logits_NV, student_head, teacher, told, ids_N[rows], rows)
                del logits_NV
                gradient_ND[rows] = sums.add(student_head, hidden_ND, slope_NV)
                parts.append(numbers)
                del slope_NV  # before the next chunk's
        losses, *numbers = zip(*parts, strict=True)
        gradients = [gradient_ND, sums.weight_VD, sums.bias_V]
        loss = _Known.apply(
            torch.stack(losses).sum(), gradients, student_ND, student_head.weight_VD, student_head.bias_V
        )
        logp_N, divergence_N, entropy_N = (torch.cat(values) for values in numbers)
        return loss, (logp_N, divergence_N, entropy_N)

    def _of_logits(
        self,
        logits_NV: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
        rows: slice,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Loss, log-probability, divergence (without one: log-probability) and entropy; the logits' gradient."""
        logq_NV, q_NV = _softmax(logits_NV, self.head.temperature)
        logp_N, entropy_N = logq_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), -dot(q_NV, logq_NV)
        divergence_N, slope_NV = self._divergence(logits_NV, (logq_NV, q_NV), teacher, told_N, ids_N)
        del logq_NV
        loss, by_logp_N, by_divergence_N = self._loss(logp_N, divergence_N, rows)
        if slope_NV is None or by_divergence_N is None:
            slope_NV = torch.zeros_like(q_NV) if slope_NV is None else slope_NV.zero_()
        else:
            slope_NV.mul_(by_divergence_N.unsqueeze(1))
        if by_logp_N is not None:
            by_logp_N1 = by_logp_N.unsqueeze(1) / self.head.temperature
            slope_NV.addcmul_(q_NV, by_logp_N1, value=-1).scatter_add_(1, ids_N.unsqueeze(1), by_logp_N1)
        if student_head.softcap is not None:
            slope_NV.mul_(1 - (logits_NV / student_head.softcap) ** 2)
        return (loss, logp_N, logp_N if divergence_N is None else divergence_N, entropy_N), slope_NV

    def _takes_two(self, teacher: TeacherOutput | None, vocabulary: int) -> bool:
        """The logits are read by compiled code."""
        divergence = self.head.divergence
        closed = divergence is None or divergence.in_closed_form(vocabulary)
        return self.head.compiled and closed and not isinstance(teacher, TopLogProbs)

    def _in_two_readings(
        self,
        logits_NV: Tensor,
        student_head: OutputHead,
        teacher: TeacherOutput | None,
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
        rows: slice,
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same."""
        divergence, told_NV = self.head.divergence, None
        if isinstance(teacher, Projection) and divergence is not None and divergence.needs_teacher:
            told_NV = teacher.head.logits(told_N[0], logits_NV.shape[1])
        reading = Reading(divergence, self.head.temperature, student_head.softcap, student_head.weight_VD.dtype)
        any_number(logits_NV, told_NV, ids_N)
        (logp_N, entropy_N, divergence_N), norms = compiled(Reading.sums)(reading, logits_NV, told_NV, ids_N)
        loss, *by = self._loss(logp_N, divergence_N, rows)
        any_number(*norms, *by)
        slope_NV = compiled(Reading.gradient)(reading, logits_NV, told_NV, ids_N, norms, *by)
        return (loss, logp_N, logp_N if divergence_N is None else divergence_N, entropy_N), slope_NV

    def _loss(
        self, logp_N: Tensor, divergence_N: Tensor | None, rows: slice
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss of some tokens and its gradients by their numbers; None where it does not look at them."""
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
        told_N: tuple[Tensor, ...],
        ids_N: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The divergence of each token and its gradient by the student's logits; None without one.

        Args:
            logits_NV: of the student.
            own: the student's log-probabilities and probabilities at the sampling temperature.
            teacher: what kind of teacher tells.
            told_N: what it tells of these tokens.
            ids_N: the tokens.
        """
        divergence = self.head.divergence
        if divergence is None:
            return None, None
        if isinstance(teacher, TopLogProbs):
            return gradient_of(lambda logits: divergence.to_top(told_N[0], told_N[1], logits), logits_NV)
        if divergence.temperature != self.head.temperature:
            own = _softmax(logits_NV, divergence.temperature)
        told_NV = None if teacher is None else teacher.head.logits(told_N[0], logits_NV.shape[1])
        return divergence.with_gradient(told_NV, logits_NV, *own, ids_N)


@dataclass
class _HeadGradient:
    """Sums over chunks, at least in float32; None for what is not trained.

    Attributes:
        weight_VD: of the matrix.
        bias_V: of the bias.
        alone: one chunk gives all of the matrix's, so that nothing need be summed: it is rounded once all the same.
    """

    weight_VD: Tensor | None
    bias_V: Tensor | None
    alone: bool

    @classmethod
    def of(cls, head: OutputHead, vocabulary: int, chunks: int) -> _HeadGradient:
        """Zeros for what of the head is trained.

        Args:
            head: the output head.
            vocabulary: words that have logits.
            chunks: how many will be added.
        """
        trained = head.weight_VD.requires_grad
        alone = trained and chunks == 1 and vocabulary == len(head.weight_VD)

        def zeros(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad:
                return None
            return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))

        return cls(None if alone else zeros(head.weight_VD), zeros(head.bias_V), alone)

    def add(self, head: OutputHead, hidden_ND: Tensor, gradient_NV: Tensor) -> Tensor:
        """Add a chunk's; returns the gradient of its hidden states, (N, D).

        Args:
            head: the output head.
            hidden_ND: what it read.
            gradient_NV: the loss's by what the matrix gave.
        """
        vocabulary = gradient_NV.shape[1]
        if self.bias_V is not None:
            self.bias_V[:vocabulary] += gradient_NV.sum(dim=0, dtype=self.bias_V.dtype)
        gradient_NV = gradient_NV.to(head.weight_VD.dtype)
        if self.alone:
            self.weight_VD = gradient_NV.T @ (hidden_ND * head.scale)
        elif self.weight_VD is not None:
            add_product(self.weight_VD[:vocabulary], gradient_NV, hidden_ND * head.scale)
        return (gradient_NV @ head.weight_VD[:vocabulary]) * head.scale


class _Known(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        """The number; `gradients` are those of `inputs`."""
        ctx.gradients = [
            None if one is None or gradient is None else gradient.to(one.dtype)
            for gradient, one in zip(gradients, inputs, strict=True)
        ]
        gradients.clear()
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each gradient times the upstream one, in its own memory: backward can run once."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of a fused loss can be taken once.")
        return None, None, *(None if one is None else one.mul_(upstream) for one in gradients)


def _softmax(logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and probabilities."""
    logq_NV = torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)
    return logq_NV, logq_NV.exp()
