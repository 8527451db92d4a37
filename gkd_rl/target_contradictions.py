"""Settings that name code of this project, `_target_`: what may be named, and what fits the run's data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gkd_rl.config import Config

ALLOWED_PACKAGES = ("gkd_rl", "reward_models")
_PACKAGES = " or ".join(ALLOWED_PACKAGES)
EMBEDDED = "embedded"  # task.data of generated rows


def check_generated(config: Config) -> Iterator[str]:
    """A checker of generated text pays nothing for any other."""
    data, files = config.task.get("data", EMBEDDED), config.task.get("data_files")
    if data == EMBEDDED and not files:
        return
    for name, node in config.reward.components.items():
        if any(str(target).startswith("gkd_rl.embedded.") for _, target in _find_targets(node, name)):
            yield (
                f"reward.components.{name} knows generated text only, and this run reads task.data_files={files} "
                f"(task.data={data}): choose another reward, e.g. reward=rouge."
            )


def check_targets(config: Config) -> Iterator[str]:
    """`_target_` names code that will be called, so only this project's own packages are taken."""
    instantiated = {"task": config.task}
    instantiated |= {f"reward.components.{name}": node for name, node in config.reward.components.items()}
    for key, node in instantiated.items():
        if not isinstance(node, dict) or "_target_" not in node:
            yield f"{key}._target_ is missing: it takes the dotted name of a class of {_PACKAGES}."
    free_form = instantiated | {"student.architecture": config.student.architecture}
    if config.teacher is not None:
        free_form["teacher.architecture"] = config.teacher.architecture
    for root, node in free_form.items():
        for key, target in _find_targets(node, root):
            if str(target).split(".")[0] not in ALLOWED_PACKAGES:
                yield f"{key}={target} is outside this project: {key} takes a class of {_PACKAGES}."


def _find_targets(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` under a plain container, with its dotted key."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        if name == "_target_":
            yield f"{prefix}.{name}", child
        else:
            yield from _find_targets(child, f"{prefix}.{name}")
