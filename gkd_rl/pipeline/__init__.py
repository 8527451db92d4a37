"""From a configuration to objects, and one run from start to table.

Read `experiment.py` (the run), `build.py`, `models.py` and `build_trainer.py` (its objects), `cache.py` and
`checkpoints.py` (what is kept), `results.py`, then what comes before a run: `preflight.py`, `memory.py`,
`doctor_checks.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.pipeline.results import Results

_MODULES = {"Results": "results"}
__all__ = ["Results"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: a run imports everything, which takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
