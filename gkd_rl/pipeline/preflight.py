"""Preflight: checkpoints and data files of a command line, checked before Hydra makes a folder; no weights are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from gkd_rl.config import Config, ModelConfig
from gkd_rl.models.checkpoint import check_weights, read_config
from gkd_rl.models.configurations import check_layers
from gkd_rl.pipeline.build import build_task, place_of, resolve_models
from gkd_rl.pipeline.build_trainer import check_generation
from gkd_rl.pipeline.models import check_teacher


def check_checkpoints(configs: Sequence[Config]) -> None:
    """Refuse, of all jobs of a command line, what this machine cannot hold and what is wrong with its checkpoints.

    Raises:
        ModelError: a checkpoint is missing, damaged, or does not go with the other; or bitsandbytes is missing.
        ConfigError: the teacher's device does not exist.
    """
    seen: list[tuple[list[ModelConfig], str]] = []
    for config in configs:
        check_teacher(config.teacher)
        models = {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})
        facts = [replace(model, seed=0, sft=None) for model in models.values()]
        model_type = next((kind for known, kind in seen if known == facts), None)
        if model_type is None:  # the models of no earlier job
            for key, model in models.items():
                check_files(model, key)
            resolved = resolve_models(config, build_task(config), torch.device("cpu"))
            model_type = resolved.student.configuration.model_type
            seen.append((facts, model_type))
        check_generation(config.rollout, model_type)


def check_data(configs: Sequence[Config]) -> None:
    """Read the data files of all jobs of a command line, each once.

    Raises:
        DataError: one is missing, unreadable or without a row that can be used.
    """
    seen = []
    logging.disable(logging.WARNING)  # the run reports which rows are dropped
    try:
        for config in configs:
            facts = config.task, config.evaluation.split
            if config.task.get("data_files") and facts not in seen:
                seen.append(facts)
                task = build_task(config)
                for split in ("train", config.evaluation.split):
                    task.examples(split)
    finally:
        logging.disable(logging.NOTSET)


def check_files(model: ModelConfig, key: str) -> None:
    """Configuration, layers and weights of a checkpoint, where there is one.

    Raises:
        ModelError: one of them is missing or damaged.
    """
    place = place_of(model, key)
    if place is None:
        return
    config = read_config(place)
    if model.keep_layers is not None:
        check_layers(config, model.keep_layers, f"{key}.keep_layers")
    check_weights(place)
