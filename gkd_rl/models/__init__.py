"""One interface for encoder-decoder and decoder-only models: hidden states of completions, and the head behind them.

Read `architecture.py` (the interface), `row_layout.py` and `decoding.py` (its two halves: teacher forcing and
generation), then how models come to be: `checkpoint.py` (files), `configurations.py`, `loading.py`, `adapter.py`,
`placement.py` (quantised, or on another device), `remote_teacher.py`, `value_head.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gkd_rl.models.adapter import AdaptedModel, InitialView
    from gkd_rl.models.architecture import Architecture, HiddenStateModel, architecture_of
    from gkd_rl.models.checkpoint import LoadOptions, Place, locate
    from gkd_rl.models.loading import load_model, load_tokenizer, save_model
    from gkd_rl.models.placement import PlacedModel
    from gkd_rl.models.remote_teacher import EndpointTeacher
    from gkd_rl.models.value_head import Critic, ValueHead

_MODULES = {
    "AdaptedModel": "adapter",
    "Architecture": "architecture",
    "Critic": "value_head",
    "EndpointTeacher": "remote_teacher",
    "HiddenStateModel": "architecture",
    "InitialView": "adapter",
    "LoadOptions": "checkpoint",
    "Place": "checkpoint",
    "PlacedModel": "placement",
    "ValueHead": "value_head",
    "architecture_of": "architecture",
    "load_model": "loading",
    "load_tokenizer": "loading",
    "locate": "checkpoint",
    "save_model": "loading",
}
__all__ = [
    "AdaptedModel",
    "Architecture",
    "Critic",
    "EndpointTeacher",
    "HiddenStateModel",
    "InitialView",
    "LoadOptions",
    "Place",
    "PlacedModel",
    "ValueHead",
    "architecture_of",
    "load_model",
    "load_tokenizer",
    "locate",
    "save_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: adapters take seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
