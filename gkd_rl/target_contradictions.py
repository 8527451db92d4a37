"""Settings that name code of this project, `_target_`: what may be named, and what fits the run's data."""

from __future__ import annotations

from collections.abc import Iterator

from gkd_rl.config import Config
from reward_models.targets import ALLOWED_PACKAGES, find_targets, refusal

_PACKAGES = " or ".join(ALLOWED_PACKAGES)
EMBEDDED = "embedded"  # task.data of generated rows


def check_generated(config: Config) -> Iterator[str]:
    """A checker of generated text pays nothing for any other."""
    data, files = config.task.get("data", EMBEDDED), config.task.get("data_files")
    if data == EMBEDDED and not files:
        return
    for name, node in config.reward.components.items():
        if any(str(target).startswith("gkd_rl.embedded.") for _, target in find_targets(node, name)):
            yield (
                f"reward.components.{name} knows generated text only, and this run reads task.data_files={files} "
                f"(task.data={data}): choose another reward, e.g. reward=rouge."
            )


def check_targets(config: Config) -> Iterator[str]:
    """`_target_` names code that will be called, so it has to be this project's or a trusted package's."""
    instantiated = {"task": config.task}
    instantiated |= {f"reward.components.{name}": node for name, node in config.reward.components.items()}
    for key, node in instantiated.items():
        if not isinstance(node, dict) or "_target_" not in node:
            yield f"{key}._target_ is missing: it takes the dotted name of a class of {_PACKAGES}."
    free_form = instantiated | {"student.architecture": config.student.architecture}
    if config.teacher is not None:
        free_form["teacher.architecture"] = config.teacher.architecture
    for root, node in free_form.items():
        for key, target in find_targets(node, root):
            refused = refusal(key, target, config.trusted_packages)
            if refused is not None:
                yield refused
