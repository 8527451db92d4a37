"""The compiled head: from one chunk's logits to token terms and to the gradient by the logits, for torch.compile.

`fused_loss` uses it on CUDA, where memory bandwidth limits the head. Each (N, V) tensor of logits is read twice: once
for the sums over the vocabulary, once for the gradient, element by element. The gradient is the only (N, V) tensor
that is written. Both functions are plain torch and give the same results without a compiler.

Values and gradients are those of `divergence_gradients`; divergences by autograd (`teacher_top_k`, remote teachers)
are not supported here. The paper has no counterpart: it changes the speed, not the loss.
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
from gkd_rl.types import has_float32_product

MAX_COMPILATIONS = 64  # per process; torch's default limit is 8
# log Σ exp of: the student's logits at the sampling temperature, at the divergence's temperature, the teacher's logits;
# then Σ_v ∂D/∂log Q_v. Each (N, 1); None without a divergence, or where it needs no teacher. A plain tuple: torch 2.11
# does not compile named tuples.
Normalisers = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
# Log-probability, entropy and divergence (or None) of each token, each (N,).
TokenValues = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class CompiledHead:
    """The settings of the head, equal for all chunks.

    Attributes:
        divergence: one in closed form, or None.
        temperature: of the sampling.
        softcap: of the student's logits, or None.
        dtype: of the gradient.
    """

    divergence: TokenDivergence | None
    temperature: float
    softcap: float | None
    dtype: torch.dtype

    def values(
        self, logits_NV: Tensor, teacher_logits_NV: Tensor | None, ids_N: Tensor
    ) -> tuple[TokenValues, Normalisers]:
        """First pass over the logits: log-probability, entropy and divergence of each token.

        Args:
            logits_NV: of the student.
            teacher_logits_NV: of the teacher; None without a divergence, or where it needs no teacher.
            ids_N: token ids.
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
        if teacher_logits_NV is not None:
            teacher_N1 = (teacher_logits_NV / self.divergence.full_teacher_temperature).logsumexp(dim=-1, keepdim=True)
        value_N, slope_NV, _ = self._slope(self.divergence, logits_NV, teacher_logits_NV, ids_N, student_N1, teacher_N1)
        slope_N1 = slope_NV.sum(dim=-1, keepdim=True)
        return (logp_N, entropy_N, value_N / self.divergence.scale_divisor), (own_N1, student_N1, teacher_N1, slope_N1)

    def gradient(
        self,
        logits_NV: Tensor,
        teacher_logits_NV: Tensor | None,
        ids_N: Tensor,
        normalisers: Normalisers,
        by_logp_N: Tensor | None,
        by_divergence_N: Tensor | None,
    ) -> Tensor:
        """Second pass over the logits: ∂loss/∂(hidden @ weight.T + bias), shape (N, V).

        Args:
            logits_NV: of the student.
            teacher_logits_NV: of the teacher, or None.
            ids_N: token ids.
            normalisers: from `values`.
            by_logp_N: ∂loss/∂log-probability of each token; None if the loss does not depend on it.
            by_divergence_N: ∂loss/∂divergence of each token; None likewise.
        """
        own_N1, student_N1, teacher_N1, slope_N1 = normalisers
        gradient_NV = torch.zeros_like(logits_NV)
        if by_logp_N is not None:
            gap_NV = _one_hot(logits_NV, ids_N) - (logits_NV / self.temperature - own_N1).exp()
            gradient_NV = gap_NV * (by_logp_N.unsqueeze(1) / self.temperature)
        if (
            by_divergence_N is not None
            and self.divergence is not None
            and student_N1 is not None
            and slope_N1 is not None
        ):
            _, slope_NV, q_NV = self._slope(
                self.divergence, logits_NV, teacher_logits_NV, ids_N, student_N1, teacher_N1
            )
            share_N1 = by_divergence_N.unsqueeze(1) / (self.divergence.scale_divisor * self.divergence.temperature)
            gradient_NV = gradient_NV + (slope_NV - q_NV * slope_N1) * share_N1
        if self.softcap is not None:  # d softcap · tanh(z / softcap) / dz
            gradient_NV = gradient_NV * (1 - (logits_NV / self.softcap) ** 2)
        return gradient_NV.to(self.dtype)

    def _slope(
        self,
        divergence: TokenDivergence,
        logits_NV: Tensor,
        teacher_logits_NV: Tensor | None,
        ids_N: Tensor,
        student_N1: Tensor,
        teacher_N1: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """D before its scale, (N,), ∂D/∂log Q and Q, both (N, V)."""
        logq_NV = logits_NV / divergence.temperature - student_N1
        q_NV = logq_NV.exp()
        if divergence.name is DivergenceName.cross_entropy or teacher_logits_NV is None or teacher_N1 is None:
            return -logq_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1), -_one_hot(logits_NV, ids_N), q_NV
        teacher_logp_NV = teacher_logits_NV / divergence.full_teacher_temperature - teacher_N1
        parameter = 0.0 if divergence.parameter is None else divergence.parameter
        return *SLOPES[divergence.name](teacher_logp_NV, logq_NV, q_NV, parameter), q_NV


def _one_hot(like_NV: Tensor, ids_N: Tensor) -> Tensor:
    """1 at the token's id, 0 elsewhere, shape (N, V)."""
    ids_V = torch.arange(like_NV.shape[1], device=like_NV.device)
    return (ids_V == ids_N.unsqueeze(1)).to(like_NV.dtype)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of `CompiledHead`, compiled once per process for any number of tokens.

    torch compiles it again for each divergence; the recompile limit is raised for sweeps that run in one process.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_COMPILATIONS)
    return torch.compile(function, fullgraph=True)  # pyright: ignore[reportReturnType]


def mark_dynamic_tokens(*tensors: Tensor | None) -> None:
    """Mark axis 0, the number of tokens, as dynamic: it differs between chunks and steps."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def add_product(sum_VD: Tensor, left_NV: Tensor, right_ND: Tensor) -> None:
    """Add leftᵀ @ right in place, without an intermediate result in half precision on CUDA."""
    if sum_VD.dtype == left_NV.dtype:
        sum_VD.addmm_(left_NV.T, right_ND)
    elif has_float32_product(left_NV):
        torch.addmm(sum_VD, left_NV.T, right_ND, out_dtype=torch.float32, out=sum_VD)
    else:
        sum_VD.add_(left_NV.T @ right_ND)
