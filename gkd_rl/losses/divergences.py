"""Divergences between the teacher's and the student's next-token distributions (GKD paper, section 2, Eq. 1).

Pure functions of log-probabilities over the vocabulary, P = p_T and Q = p_S, one value in nats per token; then
`TokenDivergence`, the configured divergence, from logits.

The paper uses JSD(beta) as it is (`scale=raw`). Here `scale=unit` divides JSD(beta) by beta (1 - beta) and the skew KLs
by (1 - skew)^2. At P = Q every smooth divergence then has the curvature of a KL, so that one alpha weighs all of them
alike, and JSD is continuous up to KL(P||Q) at beta -> 0 and KL(Q||P) at beta -> 1. Total variation distance, the skew
KLs, the temperatures and `teacher_top_k` are additions.

A new divergence is a name in config/choices.py, a function here under `@_named`, and a file in conf/divergence. A
closed form of its gradient in `divergence_gradients` is optional and makes the fused loss faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceName, DivergenceScale
from gkd_rl.losses.divergence_gradients import SLOPES, value_and_gradient

_FLOOR = -1e4  # exp(_FLOOR) is 0 in every float, and differences stay finite
_LARGE = 60.0  # exp(_LARGE) is finite in float32
_LEAST_TAIL = torch.finfo(torch.float32).eps  # a sum of float32 probabilities is not known better than this

Function = Callable[[Tensor, Tensor, float], Tensor]
Named = TypeVar("Named", bound=Function)
_FUNCTIONS: dict[DivergenceName, Function] = {}


def _named(name: DivergenceName) -> Callable[[Named], Named]:
    """Register a function of (teacher_logp_NV, student_logp_NV, parameter) under its name in the configuration."""

    def register(function: Named) -> Named:
        _FUNCTIONS[name] = function
        return function

    return register


@_named(DivergenceName.forward_kl)
def forward_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor, _: float = 0.0) -> Tensor:
    """KL(P||Q) = Σ_v P (log P - log Q) in nats, shape (N,)."""
    _check_shapes(teacher_logp_NV, student_logp_NV)
    return _kl(teacher_logp_NV, student_logp_NV)


@_named(DivergenceName.reverse_kl)
def reverse_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor, _: float = 0.0) -> Tensor:
    """KL(Q||P) = Σ_v Q (log Q - log P) in nats, shape (N,)."""
    _check_shapes(teacher_logp_NV, student_logp_NV)
    return _kl(student_logp_NV, teacher_logp_NV)


@_named(DivergenceName.jsd)
def jsd(teacher_logp_NV: Tensor, student_logp_NV: Tensor, beta: float) -> Tensor:
    """JSD(β) = β KL(P||M) + (1-β) KL(Q||M), M = β P + (1-β) Q (paper Eq. 1), in nats, shape (N,).

    KL(Q||M) = Σ (M - Q) - Q log(M/Q) with M - Q = β (P - Q), and the same for P: near either end the value is a small
    difference, and this form keeps it exact to the last digits.

    Raises:
        ValueError: beta is not strictly between 0 and 1; the ends are not the KLs but 0.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta={beta}: JSD takes beta > 0 and < 1; its ends are forward_kl and reverse_kl.")
    return beta * _kl_to_mixture(teacher_logp_NV, student_logp_NV, 1 - beta) + (1 - beta) * _kl_to_mixture(
        student_logp_NV, teacher_logp_NV, beta
    )


@_named(DivergenceName.tvd)
def tvd(teacher_logp_NV: Tensor, student_logp_NV: Tensor, _: float = 0.0) -> Tensor:
    """Total variation distance 1/2 Σ_v |P - Q| (f-distill, Wen et al. 2023), 0..1, shape (N,)."""
    _check_shapes(teacher_logp_NV, student_logp_NV)
    return 0.5 * (teacher_logp_NV.exp() - student_logp_NV.exp()).abs().sum(dim=-1)


@_named(DivergenceName.skew_kl)
def skew_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor, skew: float) -> Tensor:
    """KL(P || a P + (1-a) Q), a = skew (DistiLLM, Ko et al. 2024, Eq. 4), in nats, shape (N,).

    Raises:
        ValueError: skew is not strictly between 0 and 1; at 0 it is forward_kl.
    """
    return _kl_to_mixture(teacher_logp_NV, student_logp_NV, 1 - _checked_skew(skew, "forward_kl"))


@_named(DivergenceName.reverse_skew_kl)
def reverse_skew_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor, skew: float) -> Tensor:
    """KL(Q || a Q + (1-a) P), a = skew (DistiLLM, Ko et al. 2024), in nats, shape (N,).

    Raises:
        ValueError: skew is not strictly between 0 and 1; at 0 it is reverse_kl.
    """
    return _kl_to_mixture(student_logp_NV, teacher_logp_NV, 1 - _checked_skew(skew, "reverse_kl"))


def cross_entropy(student_logp_NV: Tensor, ids_N: Tensor) -> Tensor:
    """-log Q(given token) in nats, shape (N,): the loss of SFT and SeqKD."""
    return -student_logp_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)


def _kl(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Σ p (log p - log q); a token that p rules out adds 0 to value and gradient, also where q rules it out too."""
    p = logp_NV.exp()
    ruled_out = p == 0
    return (p * (logp_NV.masked_fill(ruled_out, 0.0) - logq_NV.masked_fill(ruled_out, 0.0))).sum(dim=-1)


def _kl_to_mixture(logp_NV: Tensor, logq_NV: Tensor, weight: float) -> Tensor:
    """KL(p || m), m = p + w (q - p), as Σ w (q - p) - p log(m/p): no digits are lost where m is close to p."""
    _check_shapes(logp_NV, logq_NV)
    logp, logq = logp_NV.clamp(min=_FLOOR), logq_NV.clamp(min=_FLOOR)
    p, gap = logp.exp(), logq - logp
    log_ratio = torch.log1p(weight * torch.expm1(gap.clamp(max=_LARGE))) + torch.relu(gap - _LARGE)  # log(m/p)
    return (weight * (logq.exp() - p) - p * log_ratio).sum(dim=-1)


def _checked_skew(skew: float, end: str) -> float:
    if not 0 < skew < 1:
        raise ValueError(f"skew={skew}: the skew KLs take skew > 0 and < 1; without skew take {end}.")
    return skew


def _check_shapes(teacher_logp_NV: Tensor, student_logp_NV: Tensor) -> None:
    if teacher_logp_NV.shape != student_logp_NV.shape:
        raise ValueError(
            f"teacher {tuple(teacher_logp_NV.shape)} and student {tuple(student_logp_NV.shape)} log-probabilities "
            "must have the same shape (N, V)."
        )


def with_tail_bucket(logp_NV: Tensor, top_NK: Tensor) -> Tensor:
    """Log-probabilities of the K chosen tokens and, last, of all other tokens together, shape (N, K + 1)."""
    others = logp_NV.scatter(1, top_NK, _FLOOR).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logp_NV.gather(1, top_NK), others], dim=-1)


def with_remaining_mass(logp_NK: Tensor) -> Tensor:
    """Log-probabilities of K tokens and, last, log(1 - Σ_k P_k) of all other tokens together, shape (N, K + 1)."""
    listed_N1 = logp_NK.double().logsumexp(dim=-1, keepdim=True)
    others_N1 = (-torch.expm1(listed_N1)).clamp(min=_LEAST_TAIL).log()
    return torch.cat([logp_NK, others_N1.to(logp_NK.dtype)], dim=-1)


def autograd_gradient(function: Callable[[Tensor], Tensor], logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N,) of a function of logits, row by row, and their gradient (N, V) by autograd."""
    with torch.enable_grad():
        leaf_NV = logits_NV.detach().requires_grad_()
        values_N = function(leaf_NV)
        (gradient_NV,) = torch.autograd.grad(values_N.sum(), leaf_NV)
    return values_N.detach(), gradient_NV


@dataclass(frozen=True)
class TokenDivergence:
    """A configured divergence: logits in, one value per token out.

    Attributes:
        name: which divergence.
        parameter: beta of the JSD, skew of the skew KLs, else None.
        temperature: divides both models' logits; it is not the sampling temperature.
        scale: raw or unit, see the module.
        teacher_top_k: compare the teacher's k most probable tokens and, as one more outcome, all others together: a
            lower bound of the full divergence that is 0 only if these masses agree. None compares the full vocabulary.
        teacher_temperature: also divides the teacher's logits (below 1: a sharper teacher, paper A.4 and Table A.2).
    """

    name: DivergenceName
    parameter: float | None = None
    temperature: float = 1.0
    scale: DivergenceScale = DivergenceScale.raw
    teacher_top_k: int | None = None
    teacher_temperature: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """False for cross-entropy, which depends on the given tokens only."""
        return self.name is not DivergenceName.cross_entropy

    @property
    def full_teacher_temperature(self) -> float:
        """Divisor of the teacher's logits."""
        return self.temperature * self.teacher_temperature

    @property
    def scale_divisor(self) -> float:
        """Divisor of the value: 1 with `scale=raw`."""
        return self._curvature() if self.scale is DivergenceScale.unit else 1.0

    def __call__(self, teacher_logits_NV: Tensor | None, student_logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """Divergence at N positions in nats, shape (N,); gradient flows to the student's logits.

        Args:
            teacher_logits_NV: None for cross-entropy.
            student_logits_NV: full vocabulary.
            ids_N: the completion's tokens; used by cross-entropy only.

        Raises:
            ValueError: the divergence needs a teacher and there is none.
        """
        student = torch.log_softmax(student_logits_NV / self.temperature, dim=-1)
        if self.name is DivergenceName.cross_entropy:
            return cross_entropy(student, ids_N)
        if teacher_logits_NV is None:
            raise ValueError(f"divergence {self.name.value} needs the teacher's logits.")
        teacher = torch.log_softmax(teacher_logits_NV / self.full_teacher_temperature, dim=-1)
        if self.teacher_top_k is not None and self._truncates(teacher.shape[-1]):
            top_NK = teacher.topk(self.teacher_top_k, dim=-1).indices
            teacher, student = with_tail_bucket(teacher, top_NK), with_tail_bucket(student, top_NK)
        return self._between(teacher, student)

    def with_gradient(
        self, teacher_logits_NV: Tensor | None, student_logits_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, ids_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The divergence in nats, (N,), and its gradient by the student's logits, (N, V).

        In closed form (`divergence_gradients`), or by autograd with `teacher_top_k`.

        Args:
            teacher_logits_NV: of the teacher, or None for cross-entropy; overwritten.
            student_logits_NV: of the student.
            logq_NV: the student's log-probabilities at this divergence's temperature.
            q_NV: their exponentials.
            ids_N: the completion's tokens.
        """
        if self.name is DivergenceName.cross_entropy:
            value_N = cross_entropy(logq_NV, ids_N)
            gradient_NV = q_NV.scatter_add(1, ids_N.unsqueeze(1), torch.full_like(q_NV[:, :1], -1))
        elif teacher_logits_NV is None or not self.has_closed_form(logq_NV.shape[-1]):
            return autograd_gradient(lambda logits_NV: self(teacher_logits_NV, logits_NV, ids_N), student_logits_NV)
        else:
            if (temperature := self.full_teacher_temperature) != 1:
                teacher_logits_NV.div_(temperature)
            teacher_logits_NV = torch.log_softmax(teacher_logits_NV, dim=-1)
            parameter = 0.0 if self.parameter is None else self.parameter
            value_N, gradient_NV = value_and_gradient(self.name, teacher_logits_NV, logq_NV, q_NV, parameter)
        divisor = self.scale_divisor * self.temperature
        return value_N / self.scale_divisor, gradient_NV if divisor == 1 else gradient_NV.div_(divisor)

    def from_top_log_probs(self, ids_NK: Tensor, logp_NK: Tensor, student_logits_NV: Tensor) -> Tensor:
        """Divergence in nats, shape (N,), from a teacher's K most probable tokens: `teacher_top_k` with k = K.

        Args:
            ids_NK: the teacher's most probable tokens, distinct at each position.
            logp_NK: their log-probabilities at temperature 1.
            student_logits_NV: full vocabulary.

        Raises:
            ValueError: the divergence needs no teacher, or has a temperature, which needs all logits.
        """
        if self.full_teacher_temperature != 1 or not self.needs_teacher:
            raise ValueError(f"divergence {self.name.value} at another temperature than 1 needs all logits.")
        student = torch.log_softmax(student_logits_NV, dim=-1)
        teacher = logp_NK.to(student.dtype)
        if ids_NK.shape[-1] < student.shape[-1]:
            return self._between(with_remaining_mass(teacher), with_tail_bucket(student, ids_NK))
        return self._between(teacher, student.gather(1, ids_NK))

    def has_closed_form(self, vocabulary: int) -> bool:
        """Whether `with_gradient` needs no autograd for a vocabulary of this size."""
        known = self.name in SLOPES or not self.needs_teacher
        return known and not self._truncates(vocabulary)

    def _truncates(self, vocabulary: int) -> bool:
        """Whether `teacher_top_k` leaves out more than one token."""
        return self.teacher_top_k is not None and self.teacher_top_k < vocabulary - 1

    def _between(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The divergence between log-probabilities, divided by its scale."""
        value = _FUNCTIONS[self.name](teacher, student, 0.0 if self.parameter is None else self.parameter)
        return value / self.scale_divisor

    def _curvature(self) -> float:
        """Curvature at P = Q, in units of that of a KL."""
        a = 0.0 if self.parameter is None else self.parameter
        if self.name is DivergenceName.jsd:
            return a * (1 - a)
        return (1 - a) ** 2 if self.name.parameter == "skew" else 1.0

    def __str__(self) -> str:
        """E.g. `JSD(0.9), unit scale`."""
        if self.name.parameter is None:
            return self.name.value.replace("_", " ").replace("kl", "KL").replace("tvd", "TVD")
        shown = "JSD" if self.name is DivergenceName.jsd else self.name.value.replace("_", " ").replace("kl", "KL")
        return f"{shown}({self.parameter}), {self.scale.value} scale" + (
            "" if self.teacher_top_k is None else f", teacher's top {self.teacher_top_k}"
        )
