"""Rewards computed from text alone, without a model: overlap with a reference, right answers, and form.

Read `overlap.py` (ROUGE, BLEU, chrF), `answers.py` (exact and mathematical answers, accepted texts, verdicts of exact
checkers) with the calculator `arithmetic.py` and `equations.py`, then `form.py` (verifiable instructions, penalties on
length and repetition).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_models.text.answers import Accepted, Checked, ExactMatch, Maths
    from reward_models.text.form import LengthPenalty, RepetitionPenalty, Verifiable
    from reward_models.text.overlap import Overlap, Rouge

_MODULES = {
    "Accepted": "answers",
    "Checked": "answers",
    "ExactMatch": "answers",
    "LengthPenalty": "form",
    "Maths": "answers",
    "Overlap": "overlap",
    "RepetitionPenalty": "form",
    "Rouge": "overlap",
    "Verifiable": "form",
}
__all__ = [
    "Accepted",
    "Checked",
    "ExactMatch",
    "LengthPenalty",
    "Maths",
    "Overlap",
    "RepetitionPenalty",
    "Rouge",
    "Verifiable",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: overlap takes seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
