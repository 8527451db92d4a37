"""A first look at a run's checkpoints and data, before Hydra makes a folder; no weights are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from gkd_rl.build import build_codecs, build_task, load_options
from gkd_rl.build_sampler import check_writer
from gkd_rl.build_teacher import check_teacher, has_weights
from gkd_rl.config import Config, ModelConfig
from gkd_rl.depth_pruning import check_layers
from gkd_rl.model_files import read_config
from gkd_rl.weight_files import check_weights


def check_checkpoints(configs: Sequence[Config]) -> None:
    """Refuse, of all jobs of a command line, what this machine cannot hold and what its checkpoints tell is wrong.

    Raises:
        ModelError: a checkpoint is missing, damaged, or does not go with the other; or bitsandbytes is missing.
        ConfigError: the teacher's device does not exist.
    """
    seen = []
    for config in configs:
        check_teacher(config.teacher)
        check_writer(config)
        models = {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})
        facts = [replace(model, seed=0, sft=None) for model in models.values()]
        if facts in seen:  # jobs that differ in other settings
            continue
        seen.append(facts)
        for key, model in models.items():
            check_files(model, key)
        own = config.teacher if has_weights(config.teacher) else None
        build_codecs(config, own, build_task(config), torch.device("cpu"))


def check_data(configs: Sequence[Config]) -> None:
    """Read the data files of all jobs of a command line, each once.

    Raises:
        DataError: one is missing, unreadable or without a row that can be used.
    """
    seen = []
    logging.disable(logging.WARNING)  # the run tells which rows are dropped
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
    if model.path is None:
        return
    options = load_options(model)
    config = read_config(model.path, model.revision, f"{key}.path", options)
    if model.keep_layers is not None:
        check_layers(config, model.keep_layers, f"{key}.keep_layers")
    check_weights(model.path, f"{key}.path", options)
