"""Value and gradient of each divergence in closed form, in one pass over the vocabulary.

The slope s_v = ∂D/∂log Q_v treats the log-probabilities as independent variables. The gradient by the logits whose
softmax is Q is then s - Q Σ_v s_v. A multiple of Q in s has no effect on it and is left out of s.

The definitions are in `losses/divergences.py`; tests compare with autograd through them. The functions here overwrite
the teacher's log-probabilities, so that few (N, V) tensors are alive at one time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gkd_rl.config.choices import DivergenceName

_FLOOR = -1e4  # exp(_FLOOR) is 0 in every float, and differences stay finite
_LARGE = 60.0  # with a ratio of e^60 the smaller probability is below the float32 rounding of a mixture

# (log P, log Q, Q, parameter) -> value (N,) and slope (N, V); log P is overwritten.
Slope = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _forward_kl(teacher_logp_NV: Tensor, logq_NV: Tensor, _: Tensor, __: float) -> tuple[Tensor, Tensor]:
    """Σ P (log P - log Q); s = -P."""
    p = teacher_logp_NV.exp()
    gap = teacher_logp_NV.clamp_(min=_FLOOR).sub_(logq_NV.clamp(min=_FLOOR))
    return dot(p, gap), p.neg_()


def _reverse_kl(teacher_logp_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, _: float) -> tuple[Tensor, Tensor]:
    """Σ Q (log Q - log P); s = Q (log Q - log P)."""
    slope = _gap(teacher_logp_NV, logq_NV).mul_(q_NV)
    return slope.sum(dim=-1), slope


def _jsd(teacher_logp_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Σ -β P log(M/P) - (1-β) Q log(M/Q); s = -(1-β) Q log(M/Q)."""
    p = teacher_logp_NV.exp()
    gap = _gap(teacher_logp_NV, logq_NV).clamp_(-_LARGE, _LARGE)
    log_ratio = _log_mixture(gap.neg(), beta)  # log(M/Q)
    log_m_over_p = gap.add_(log_ratio)
    slope = log_ratio.mul_(q_NV).mul_(beta - 1)
    return slope.sum(dim=-1) - beta * dot(p, log_m_over_p), slope


def _skew_kl(teacher_logp_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(P || M), M = a P + (1-a) Q; s = -(1-a) P Q / M."""
    p = teacher_logp_NV.exp()
    log_ratio = _log_mixture(_gap(teacher_logp_NV, logq_NV).clamp_(-_LARGE, _LARGE), 1 - skew)  # log(M/P)
    value = (1 - skew) * (q_NV - p).sum(dim=-1) - dot(p, log_ratio)
    return value, log_ratio.neg_().exp_().mul_(q_NV).mul_(skew - 1)


def _reverse_skew_kl(teacher_logp_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, skew: float) -> tuple[Tensor, Tensor]:
    """KL(Q || M), M = a Q + (1-a) P; s = -Q (log(M/Q) + a Q/M)."""
    lacking = (teacher_logp_NV.exp() - q_NV).sum(dim=-1)
    log_ratio = _log_mixture(_gap(teacher_logp_NV, logq_NV).neg_().clamp_(-_LARGE, _LARGE), 1 - skew)  # log(M/Q)
    value = (1 - skew) * lacking - dot(q_NV, log_ratio)
    share = log_ratio.neg().exp_()
    return value, log_ratio.add_(share, alpha=skew).mul_(q_NV).neg_()


def _tvd(teacher_logp_NV: Tensor, _: Tensor, q_NV: Tensor, __: float) -> tuple[Tensor, Tensor]:
    """1/2 Σ |P - Q|; s = -1/2 sign(P - Q) Q."""
    gap = teacher_logp_NV.exp_().sub_(q_NV)
    return 0.5 * gap.abs().sum(dim=-1), gap.sign_().mul_(q_NV).mul_(-0.5)


SLOPES: dict[DivergenceName, Slope] = {
    DivergenceName.forward_kl: _forward_kl,
    DivergenceName.reverse_kl: _reverse_kl,
    DivergenceName.jsd: _jsd,
    DivergenceName.skew_kl: _skew_kl,
    DivergenceName.reverse_skew_kl: _reverse_skew_kl,
    DivergenceName.tvd: _tvd,
}


def value_and_gradient(
    name: DivergenceName, teacher_logp_NV: Tensor, logq_NV: Tensor, q_NV: Tensor, parameter: float
) -> tuple[Tensor, Tensor]:
    """D in nats, (N,), and its gradient by the logits whose softmax is Q, (N, V).

    Args:
        name: which divergence.
        teacher_logp_NV: log P; overwritten.
        logq_NV: log Q.
        q_NV: Q.
        parameter: beta of the JSD, skew of the skew KLs.
    """
    value_N, slope_NV = SLOPES[name](teacher_logp_NV, logq_NV, q_NV, parameter)
    return value_N, slope_NV.addcmul_(q_NV, slope_NV.sum(dim=-1, keepdim=True), value=-1)


def _gap(teacher_logp_NV: Tensor, logq_NV: Tensor) -> Tensor:
    """Finite log Q - log P, overwriting log P."""
    return teacher_logp_NV.clamp_(min=_FLOOR).neg_().add_(logq_NV.clamp(min=_FLOOR))


def _log_mixture(gap_NV: Tensor, weight: float) -> Tensor:
    """log(m/p) = log(1 + w (e^gap - 1)) for the mixture m = p + w (q - p) and gap = log(q/p); in place."""
    return gap_NV.expm1_().mul_(weight).log1p_()


def dot(one_NV: Tensor, other_NV: Tensor) -> Tensor:
    """Σ_v one · other, shape (N,), without a third (N, V) tensor."""
    if torch.compiler.is_compiling():  # the compiler fuses product and sum
        return (one_NV * other_NV).sum(dim=-1)
    return torch.bmm(one_NV.unsqueeze(1), other_NV.unsqueeze(2)).flatten()
