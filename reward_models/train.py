"""Entry point: `python -m reward_models.train reward=entailment|scalar key=value ...` trains a reward model.

Its settings stand in conf/reward_training; it ends with a model folder, a report of held-out rows beside it as JSON, and
the report on the console.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from reward_models.calibration import MEASURES, report
from reward_models.checkpoints import Checkpoint
from reward_models.classifier import NewClassifier, TrainingSettings, from_checkpoint, train_classifier
from reward_models.entailment import Entailment
from reward_models.rows import Row, checked, read_files, split
from reward_models.scalar import ScalarReward
from reward_models.score import reward_files

REWARDS = ("entailment", "scalar")
log = logging.getLogger(__name__)


def settings_of(arguments: Sequence[str]) -> tuple[str, DictConfig]:
    """Which reward, and its settings: the YAML file with `key=value` over it.

    Raises:
        ValueError: a key is unknown, a value is unreadable, or `reward` or `out` is missing; all unknown keys at once.
    """
    given = dict(one.partition("=")[::2] for one in arguments)
    reward = given.pop("reward", "")
    if reward not in REWARDS:
        raise ValueError(f"reward={reward}: takes {' or '.join(REWARDS)}, as in `python -m reward_models.train reward=scalar`.")
    config = OmegaConf.load(reward_files().with_name("reward_training") / f"{reward}.yaml")
    assert isinstance(config, DictConfig)
    unknown = [key for key in given if not _known(config, key)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown; reward={reward} takes {', '.join(map(str, config))}.")
    for key, value in given.items():
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"])["value"], merge=True, force_add=True)
    if not config.out:
        raise ValueError("out: set it to the folder that the model is written to, as in out=runs/nli.")
    return reward, config


def _known(config: DictConfig, key: str) -> bool:
    """Whether a key stands in the file, or below one that takes any (empty there, or a generator)."""
    node: Any = config
    for part in key.split("."):
        if node is None or (isinstance(node, DictConfig) and "_target_" in node):
            return True
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node[part]
    return True


def build(node: Any, key: str) -> Any:
    """What a node with `_target_` names.

    Raises:
        ValueError: it cannot be built.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise ValueError(f"{key}: {error.__cause__ or error}") from error


def say(step: int, loss: float) -> None:
    """Progress."""
    if step % 50 == 0:
        print(f"step {step}: loss {loss:.3f}", flush=True)  # noqa: T201


def train_entailment(config: DictConfig, train: list[Row], held_out: list[Row]) -> dict[str, Any]:
    """Train and save a classifier of pairs; its report."""
    settings = TrainingSettings(**config.training)
    new: NewClassifier | None = build(config.new, "new")
    base = None if new is not None else Checkpoint(**config.checkpoint)
    model, tokenizer = new.build(settings.seed) if new is not None else from_checkpoint(_given(base))
    longest = Checkpoint(".", max_tokens=config.checkpoint.max_tokens).longest(model, tokenizer)
    train_classifier(model, tokenizer, train, settings, longest, say)
    model.save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)
    return {}
