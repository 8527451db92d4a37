"""Names that have changed since runs were made: settings and numbers of earlier runs are read under the present names.

A new run has to type the new name (`run_rules.py` refuses the old one and prints it). A run folder made before the move
has old names in its config.yaml and command.json; they are translated where such a run is resumed (`cli/`). So
are the names of metrics in its metrics.jsonl and in the totals of its checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

RENAMED_METRICS = {"time/survey": "time/pre_update", "flops/survey": "flops/pre_update"}
MOVED_MODULES = {
    "gkd_rl.embedded.checker": "gkd_rl.data.embedded.news",
    "gkd_rl.embedded.claims": "gkd_rl.data.embedded.claims",
    "gkd_rl.embedded.tokenizer": "gkd_rl.data.embedded.tokenizer",
    "gkd_rl.embedded.walk": "gkd_rl.data.embedded.walk",
    "gkd_rl.sweep_folder": "gkd_rl.cli.sweeps",
    "gkd_rl.tasks.gsm8k": "gkd_rl.data.tasks.gsm8k",
    "gkd_rl.tasks.instruct": "gkd_rl.data.tasks.instruct",
    "gkd_rl.tasks.walk": "gkd_rl.data.tasks.walk",
    "gkd_rl.tasks.wmt": "gkd_rl.data.tasks.wmt",
    "gkd_rl.tasks.xsum": "gkd_rl.data.tasks.xsum",
    "reward_models.accepted": "reward_models.text.answers",
    "reward_models.by_kind": "reward_models.composite",
    "reward_models.checked": "reward_models.text.answers",
    "reward_models.checkpoints": "reward_models.models.checkpoint",
    "reward_models.classifier": "reward_models.models.classifier",
    "reward_models.code_execution": "reward_models.code.sandbox",
    "reward_models.entailment": "reward_models.models.entailment",
    "reward_models.exact_match": "reward_models.text.answers",
    "reward_models.judge": "reward_models.models.judge",
    "reward_models.maths": "reward_models.text.answers",
    "reward_models.overlap": "reward_models.text.overlap",
    "reward_models.rouge": "reward_models.text.overlap",
    "reward_models.scalar": "reward_models.models.scalar",
    "reward_models.shaping": "reward_models.text.form",
    "reward_models.trained_entailment": "reward_models.models.entailment",
    "reward_models.verifiable": "reward_models.text.form",
}
_DOTTED_NAME = re.compile(r"(?<![\w.])(?:gkd_rl|reward_models)(?:\.\w+)+")


def moved_target(target: str) -> str | None:
    """The new dotted name of a class or function that has moved; None for any other."""
    module, _, name = target.rpartition(".")
    return f"{MOVED_MODULES[module]}.{name}" if module in MOVED_MODULES else None


def with_current_targets(text: str) -> str:
    """A setting's value or an override, as text, with the new name of every target in it that has moved."""
    return _DOTTED_NAME.sub(lambda match: moved_target(match[0]) or match[0], text)


def with_current_metrics(numbers: Mapping[str, T]) -> dict[str, T]:
    """Numbers of an earlier run, each metric under its present name."""
    return {RENAMED_METRICS.get(name, name): value for name, value in numbers.items()}
