"""Divergences between the teacher's and the student's next-token distributions (GKD paper, section 2, Eq. 1).

Pure functions of full-vocabulary log-probabilities, P = p_T and Q = p_S, one value per token. The paper uses JSD(beta)
raw; `scale=unit` divides it by beta (1 - beta), which makes it continuous up to KL(P||Q) at beta -> 0 and KL(Q||P) at
beta -> 1 and keeps its gradient at one order of magnitude, so that one alpha means one thing for every beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_rl.config import DivergenceName, DivergenceScale

_FLOOR = -1e30


def forward_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor) -> Tensor:
    """KL(P||Q) = Σ_v P (log P - log Q) in nats, shape (N,)."""
    _check_shapes(teacher_logp_NV, student_logp_NV)
    return _kl(teacher_logp_NV, student_logp_NV)


def reverse_kl(teacher_logp_NV: Tensor, student_logp_NV: Tensor) -> Tensor:
    """KL(Q||P) = Σ_v Q (log Q - log P) in nats, shape (N,)."""
    _check_shapes(teacher_logp_NV, student_logp_NV)
    return _kl(student_logp_NV, teacher_logp_NV)


def jsd(teacher_logp_NV: Tensor, student_logp_NV: Tensor, beta: float) -> Tensor:
    """JSD(β) = β KL(P||M) + (1-β) KL(Q||M), M = β P + (1-β) Q (paper Eq. 1), in nats, shape (N,).

    Raises:
        ValueError: beta is not strictly between 0 and 1; the ends are not the KLs but 0.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta={beta}: JSD takes beta > 0 and < 1; its ends are forward_kl and reverse_kl.")
    _check_shapes(teacher_logp_NV, student_logp_NV)
    # A word that both rule out is -inf twice, where logaddexp has no gradient; the floor is as good as -inf to exp.
    teacher_floored, student_floored = (logp.clamp(min=_FLOOR) for logp in (teacher_logp_NV, student_logp_NV))
    mixture = torch.logaddexp(teacher_floored + math.log(beta), student_floored + math.log1p(-beta))
    return beta * _kl(teacher_logp_NV, mixture) + (1 - beta) * _kl(student_logp_NV, mixture)


def cross_entropy(student_logp_NV: Tensor, ids_N: Tensor) -> Tensor:
    """-log Q(given token) in nats, shape (N,): the loss of SFT and SeqKD."""
    return -student_logp_NV.gather(1, ids_N.unsqueeze(1)).squeeze(1)


def _kl(logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Σ p (log p - log q); a token that p rules out adds 0 to value and gradient, also where q rules it out too."""
    p = logp_NV.exp()
    ruled_out = p == 0
    return (p * (logp_NV.masked_fill(ruled_out, 0.0) - logq_NV.masked_fill(ruled_out, 0.0))).sum(dim=-1)


def _check_shapes(teacher_logp_NV: Tensor, student_logp_NV: Tensor) -> None:
    if teacher_logp_NV.shape != student_logp_NV.shape:
        raise ValueError(
            f"teacher {tuple(teacher_logp_NV.shape)} and student {tuple(student_logp_NV.shape)} log-probabilities "
            "must have the same shape (N, V)."
        )


@dataclass(frozen=True)
class TokenDivergence:
    """A configured divergence: logits in, one value per token out.

    Attributes:
        name: which.
        beta: of the JSD, else None.
        temperature: divides both models' logits; it is not the sampling temperature.
        scale: `unit` divides JSD(beta) by beta (1 - beta); the others are unit already.
    """

    name: DivergenceName
    beta: float | None = None
    temperature: float = 1.0
    scale: DivergenceScale = DivergenceScale.raw

    @property
    def needs_teacher(self) -> bool:
        """Cross-entropy reads the given tokens only."""
        return self.name is not DivergenceName.cross_entropy

    def __call__(self, teacher_logits_NV: Tensor | None, student_logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """Divergence at N positions in nats, shape (N,); gradient flows to the student's logits.

        Raises:
            ValueError: the divergence needs a teacher and there is none.
        """
        student = torch.log_softmax(student_logits_NV / self.temperature, dim=-1)
        if self.name is DivergenceName.cross_entropy:
            return cross_entropy(student, ids_N)
        if teacher_logits_NV is None:
            raise ValueError(f"divergence {self.name.value} needs the teacher's logits.")
        teacher = torch.log_softmax(teacher_logits_NV / self.temperature, dim=-1)
        if self.name is DivergenceName.forward_kl:
            return forward_kl(teacher, student)
        if self.name is DivergenceName.reverse_kl:
            return reverse_kl(teacher, student)
        beta = 0.0 if self.beta is None else self.beta
        value = jsd(teacher, student, beta)
        return value / (beta * (1 - beta)) if self.scale is DivergenceScale.unit else value

    def __str__(self) -> str:
        """E.g. `JSD(0.9), unit scale`."""
        if self.name is DivergenceName.jsd:
            return f"JSD({self.beta}), {self.scale.value} scale"
        return self.name.value.replace("_", " ").replace("kl", "KL")
