"""Prompts and references: the contract of a task, row files and the Hub, and the order of prompts.

Read `task.py`, `rows.py`, `row_files.py`, `prompt_order.py`, then one task in `tasks/`; `embedded/` generates rows
offline.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.data.prompt_order import PromptStream, choose_source
    from gkd_rl.data.task import DataSource, Task

_MODULES = {"DataSource": "task", "PromptStream": "prompt_order", "Task": "task", "choose_source": "prompt_order"}
__all__ = ["DataSource", "PromptStream", "Task", "choose_source"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: generators of text need no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
