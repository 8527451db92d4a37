"""The mathematics: divergences, policy gradients, the objective of paper Eq. 5, and the output head that feeds them.

Pure functions and frozen values; tensors in, tensors out. Read `divergences.py`, `divergence_gradients.py` (the same in
closed form), `policy_gradient.py`, `objective.py`, then the head: `fused_head.py`, `fused_loss.py` (its loss and
gradient in one pass) and `compiled_head.py` (the same for a compiler). `fused_distillation_loss` is the part that fits
into training loops of other projects.
"""

from gkd_rl.config.choices import (
    Baseline,
    DivergenceName,
    DivergenceReduction,
    DivergenceScale,
    KlEstimator,
    SurrogateReduction,
)
from gkd_rl.losses.divergences import (
    TokenDivergence,
    cross_entropy,
    forward_kl,
    jsd,
    reverse_kl,
    reverse_skew_kl,
    skew_kl,
    tvd,
)
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.fused_loss import FusedLoss, fused_distillation_loss
from gkd_rl.losses.objective import Objective, StepTotals, TokenLoss
from gkd_rl.losses.policy_gradient import (
    CreditSettings,
    advantages,
    divergence_credit,
    gae,
    reward_to_go,
    sampled_kl,
    surrogate,
)

__all__ = [
    "Baseline",
    "CreditSettings",
    "DivergenceName",
    "DivergenceReduction",
    "DivergenceScale",
    "FusedHead",
    "FusedLoss",
    "KlEstimator",
    "Objective",
    "StepTotals",
    "SurrogateReduction",
    "TokenDivergence",
    "TokenLoss",
    "advantages",
    "cross_entropy",
    "divergence_credit",
    "forward_kl",
    "fused_distillation_loss",
    "gae",
    "jsd",
    "reverse_kl",
    "reverse_skew_kl",
    "reward_to_go",
    "sampled_kl",
    "skew_kl",
    "surrogate",
    "tvd",
]
