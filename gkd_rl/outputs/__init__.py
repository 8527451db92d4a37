"""The run folder: JSON files, the run's record, metrics and samples, tables and the model card.

Read `json_files.py`, `run_record.py`, `tracking.py` (the only import of wandb), then `tables.py`. Nothing here imports
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.outputs.tables import Estimate

_MODULES = {"Estimate": "tables"}
__all__ = ["Estimate"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: the command line needs no tables."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
