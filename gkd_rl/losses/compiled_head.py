"""What `fused_loss` does with a chunk's logits, in a form that a compiler makes few kernels of.

A GPU computes faster than it reads. The logits of both models are read for the sums over the vocabulary, and a second
time for the gradient, element by element; no other tensor of shape (N, V) is written than the gradient. Both readings
are plain torch, and right without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceName
from gkd_rl.losses.divergence_gradients import SLOPES
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.types import in_float32

READINGS = 64  # that a process compiles at most; torch refuses the ninth unless it is told
# log Σ exp of the student's logits at the sampling's and at the divergence's temperature, and of the teacher's, and
# Σ_v ∂D/∂log Q_v: each (N, 1), or None where there is no divergence or it does not read the teacher. A plain tuple:
# torch 2.11 does not compile named ones.
Norms = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
# Log-probability, entropy and divergence, or None, of the tokens: each (N,).
Numbers = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Reading:
    """What is read; nothing in it changes from chunk to chunk.

    Attributes:
        divergence: in closed form, or None.
        temperature: of the sampling.
        softcap: of the student's logits.
        dtype: of the gradient.
    """

    divergence: TokenDivergence | None
    temperature: float
    softcap: float | None
    dtype: torch.dtype

    def sums(self, logits_NV: Tensor, told_NV: Tensor | None, ids_N: Tensor) -> tuple[Numbers, Norms]:
        """The first reading.

        Args:
            logits_NV: of the student.
            told_NV: of the teacher; None without a divergence that reads it.
            ids_N: the tokens.
        """
        scaled_NV = logits_NV / self.temperature
        own_N1 = scaled_NV.logsumexp(dim=-1, keepdim=True)
        logq_NV = scaled_NV - own_N1
        logp_N = logq_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)
        entropy_N = -(logq_NV.exp() * logq_NV).sum(dim=-1)
        if self.divergence is None:
            return (logp_N, entropy_N, None), (own_N1, None, None, None)
        student_N1 = (logits_NV / self.divergence.temperature).logsumexp(dim=-1, keepdim=True)
        teacher_N1 = None
        if told_NV is not None:
            teacher_N1 = (told_NV / self.divergence.teachers_temperature).logsumexp(dim=-1, keepdim=True)
        value_N, slope_NV, _ = self._slope(self.divergence, logits_NV, told_NV, ids_N, student_N1, teacher_N1)
        slope_N1 = slope_NV.sum(dim=-1, keepdim=True)
        return (logp_N, entropy_N, value_N / self.divergence.unit), (own_N1, student_N1, teacher_N1, slope_N1)

    def gradient(
        self,
        logits_NV: Tensor,
        told_NV: Tensor | None,
        ids_N: Tensor,
        norms: Norms,
        by_logp_N: Tensor | None,
        by_divergence_N: Tensor | None,
    ) -> Tensor:
        """The second reading: the loss's gradient by what the student's matrix gives, (N, V).

        Args:
            logits_NV: of the student.
            told_NV: of the teacher, or None.
            ids_N: the tokens.
            norms: of the first reading.
            by_logp_N: the loss's gradient by the log-probabilities; None if it does not look at them.
            by_divergence_N: and by the divergences.
        """
        own_N1, student_N1, teacher_N1, slope_N1 = norms
        gradient_NV = torch.zeros_like(logits_NV)
        if by_logp_N is not None:
            gap_NV = _chosen(logits_NV, ids_N) - (logits_NV / self.temperature - own_N1).exp()
            gradient_NV = gap_NV * (by_logp_N.unsqueeze(1) / self.temperature)
        if (
            by_divergence_N is not None
            and self.divergence is not None
            and student_N1 is not None
            and slope_N1 is not None
        ):
            _, slope_NV, q_NV = self._slope(self.divergence, logits_NV, told_NV, ids_N, student_N1, teacher_N1)
            share_N1 = by_divergence_N.unsqueeze(1) / (self.divergence.unit * self.divergence.temperature)
            gradient_NV = gradient_NV + (slope_NV - q_NV * slope_N1) * share_N1
        if self.softcap is not None:
            gradient_NV = gradient_NV * (1 - (logits_NV / self.softcap) ** 2)
        return gradient_NV.to(self.dtype)

    def _slope(
        self,
        divergence: TokenDivergence,
        logits_NV: Tensor,
        told_NV: Tensor | None,
        ids_N: Tensor,
        student_N1: Tensor,
        teacher_N1: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D before it is scaled, (N,), ∂D/∂log Q and Q, both (N, V)."""
        logq_NV = logits_NV / divergence.temperature - student_N1
        q_NV = logq_NV.exp()
        if divergence.name is DivergenceName.cross_entropy or told_NV is None or teacher_N1 is None:
            return -logq_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), -_chosen(logits_NV, ids_N), q_NV
        told_NV = told_NV / divergence.teachers_temperature - teacher_N1
        parameter = 0.0 if divergence.parameter is None else divergence.parameter
        return *SLOPES[divergence.name](told_NV, logq_NV, q_NV, parameter), q_NV


def add_product(sum_VD: Tensor, one_NV: Tensor, other_ND: Tensor) -> None:
    """Sum += oneᵀ @ other, rounded to the sum's dtype only."""
    if sum_VD.dtype == one_NV.dtype:
        sum_VD.addmm_(one_NV.T, other_ND)
    elif in_float32(one_NV):
        torch.addmm(sum_VD, one_NV.T, other_ND, out_dtype=torch.float32, out=sum_VD)
    else:
        sum_VD.add_(one_NV.T @ other_ND)


@cache
def compiled(reading: Callable[..., Any]) -> Callable[..., Any]:
    """A reading in few kernels, for any number of tokens; a sweep in one process has one for each divergence."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, READINGS)
    return torch.compile(reading, fullgraph=True)  # pyright: ignore[reportReturnType]


def any_number(*tensors: Tensor | None) -> None:
    """The compiler need not ask how many tokens there are."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _chosen(like_NV: Tensor, ids_N: Tensor) -> Tensor:
    """1 at the tokens, else 0."""
    words_V = torch.arange(like_NV.shape[1], device=like_NV.device)
    return (words_V == ids_N.unsqueeze(1)).to(like_NV.dtype)
