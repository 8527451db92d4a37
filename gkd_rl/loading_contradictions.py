"""Settings of a checkpoint that contradict one another; what only its configuration can tell is refused in loading."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from gkd_rl.config import Config, ModelConfig

_OF_CHECKPOINTS = ("gguf_file", "keep_layers", "dropout")


def check_loading(config: Config) -> Iterator[str]:
    """Layers that no model has, and settings of a checkpoint where there is none."""
    models = {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})
    for key, model in models.items():
        yield from _layers(key, model)
        if model.path is None:
            for name in _OF_CHECKPOINTS:
                value = getattr(model, name)
                if value is not None:
                    yield (
                        f"{key}.{name}={value} with {key}.path=null has nothing to read: set {key}.path to a folder or "
                        f"Hub id, or {key}.{name}=null."
                    )


def _layers(key: str, model: ModelConfig) -> Iterator[str]:
    """No layer, a negative one, one that comes twice, or a falling order."""
    keep = model.keep_layers
    if keep is None:
        return
    if not keep or keep[0] < 0 or any(one >= other for one, other in pairwise(keep)):
        yield (
            f"{key}.keep_layers={keep}: {key}.keep_layers takes one or more layers, counted from 0, each once and in "
            "rising order, e.g. [0,3,6], or null for all of them."
        )
