"""Decode a split and measure it: metrics, intervals, the teacher audit, public benchmarks.

Read `evaluator.py`, `metrics.py`, `uncertainty.py`, then `benchmarks/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.evaluation.evaluator import Evaluation, EvaluationSettings, Evaluator, TeacherAudit
    from gkd_rl.evaluation.metrics import rouge_scores, self_bleu
    from gkd_rl.evaluation.uncertainty import bootstrap_interval, estimate, paired_difference

_MODULES = {
    "Evaluation": "evaluator",
    "EvaluationSettings": "evaluator",
    "Evaluator": "evaluator",
    "TeacherAudit": "evaluator",
    "bootstrap_interval": "uncertainty",
    "estimate": "uncertainty",
    "paired_difference": "uncertainty",
    "rouge_scores": "metrics",
    "self_bleu": "metrics",
}
__all__ = [
    "Evaluation",
    "EvaluationSettings",
    "Evaluator",
    "TeacherAudit",
    "bootstrap_interval",
    "estimate",
    "paired_difference",
    "rouge_scores",
    "self_bleu",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: metrics take seconds to import, and benchmarks do without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
