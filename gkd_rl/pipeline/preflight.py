"""A first look at a run's checkpoints and data, before Hydra makes a folder; no weights are read.

Checks of a run before it costs anything, one after the other; nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator

from gkd_rl.config import Config, ModelConfig
from gkd_rl.config.rules import alpha_schedule
from gkd_rl.data.task import Task, cut_report, row_reports
from gkd_rl.errors import DataError, GkdRlError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.checkpoint import check_weights, read_config
from gkd_rl.models.configurations import check_layers
from gkd_rl.models.loading import is_on_hub
from gkd_rl.pipeline import build
from gkd_rl.pipeline.build import build_codecs, build_task, load_options
from gkd_rl.pipeline.build_trainer import check_generation
from gkd_rl.pipeline.machine_checks import check_disk, check_hub, check_precision, check_servers
from gkd_rl.pipeline.memory import longest, plan_memory
from gkd_rl.pipeline.model_checks import ModelChecks
from gkd_rl.pipeline.models import check_teacher, has_weights
from gkd_rl.planning.checks import CheckResult
from gkd_rl.planning.memory_plan import GIB, Lengths, plan_lines
from gkd_rl.training.trainer import score
from gkd_rl.types import Example


def check_checkpoints(configs: Sequence[Config]) -> None:
    """Refuse, of all jobs of a command line, what this machine cannot hold and what its checkpoints tell is wrong.

    Raises:
        ModelError: a checkpoint is missing, damaged, or does not go with the other; or bitsandbytes is missing.
        ConfigError: the teacher's device does not exist.
    """
    seen = []
    for config in configs:
        check_teacher(config.teacher)
        check_generation(config)
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


ROWS = 256  # of the data, that the reward is looked at
ASKED = 8  # of them, where a server is asked


def run_checks(config: Config, *, large: bool = False) -> Iterator[CheckResult]:
    """Every check in turn.

    Args:
        config: of the run.
        large: read weights of any size.
    """
    logging.getLogger("datasets").setLevel(logging.ERROR)
    device = Accelerator().device
    yield CheckResult("settings", "ok", "nothing contradicts anything else")
    yield from _devices(config)
    yield check_precision(config, device)
    yield check_hub(config)
    yield from _checkpoints(config)
    try:
        task = build.build_task(config)
    except GkdRlError as error:
        yield CheckResult("data", "failed", str(error))
        return
    found, train, held_out = _data(config, task)
    yield found
    found, codec = _tokenizers(config, task)
    yield found
    if codec is not None and train:
        yield _lengths(codec, train)
        yield from _reward(config, codec, train)
        yield from check_servers(config, codec, train[0])
        if held_out:
            yield from ModelChecks(config, task, train, held_out, large).findings()
        lengths, origin = longest(config, codec, train), "the longest prompt that the run meets"
    else:
        lengths, origin = Lengths(task.max_prompt_tokens, task.max_completion_tokens), "the limit of prompts"
    yield from _memory(config, lengths, origin, codec)


def _devices(config: Config) -> Iterator[CheckResult]:
    device = Accelerator().device
    try:
        check_teacher(config.teacher)
    except GkdRlError as error:
        yield CheckResult("devices", "failed", str(error))
    else:
        yield CheckResult("devices", "ok", f"the run's device is {device}")


def _checkpoints(config: Config) -> Iterator[CheckResult]:
    """The files of both models, by their headers."""
    models = {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})
    for key, model in models.items():
        if model.path is None:
            continue
        try:
            check_files(model, key)
        except ModelError as error:
            yield CheckResult("checkpoints", "unknown" if is_on_hub(model.path) else "failed", str(error))
        else:
            yield CheckResult("checkpoints", "ok", f"{key}: {model.path}")


def _data(config: Config, task: Task) -> tuple[CheckResult, list[Example], list[Example]]:
    """Both splits are read."""
    try:
        train, held_out = task.examples("train"), task.examples(config.evaluation.split)
    except DataError as error:
        return CheckResult("data", "failed" if config.task.get("data_files") else "unknown", str(error)), [], []
    words = f"{len(train)} train rows, {len(held_out)} {config.evaluation.split} rows"
    words += "".join(f"; {report}" for report in row_reports(task).values() if report.problems)
    return CheckResult("data", "ok", words), train, held_out


def _tokenizers(config: Config, task: Task) -> tuple[CheckResult, TextCodec | None]:
    """Student and teacher mean the same by the same ids, and end alike."""
    settings = config.teacher
    own = settings if has_weights(settings) else None
    try:
        codec, _ = build.build_codecs(config, own, task, Accelerator().device)
    except ModelError as error:
        remote = any(is_on_hub(one.path) for one in (config.student, own) if one is not None)
        return CheckResult("tokenizers", "unknown" if remote else "failed", str(error)), None
    ends = " or ".join(map(str, codec.eos_ids))
    shared = "" if own is None else ", shared with the teacher"
    return CheckResult("tokenizers", "ok", f"{codec.vocabulary} words{shared}; id {ends} ends a text"), codec


def _lengths(codec: TextCodec, train: list[Example]) -> CheckResult:
    """How many rows are cut."""
    report = cut_report(codec, train)
    if max(report.prompts.cut, report.references.cut) > report.rows / 2:
        words = f"{report}: raise task.max_prompt_tokens or task.max_completion_tokens. {report.advice()}."
        return CheckResult("lengths", "failed", words)
    return CheckResult("lengths", "ok", str(report))


def _reward(config: Config, codec: TextCodec, train: list[Example]) -> Iterator[CheckResult]:
    """The reward of references is above that of other rows' references."""
    try:
        reward = build.build_reward(config)
    except GkdRlError as error:
        yield CheckResult("reward", "failed", str(error))
        return
    if reward is None or not alpha_schedule(config).has_reward:
        return
    untrained = reward.untrained()
    if untrained:
        yield CheckResult("reward", "unknown", f"{', '.join(untrained)}: the run trains its model first")
        return
    asks = any(hasattr(component.reward, "server") for component in reward.components.values())
    own = codec.references(train[: ASKED if asks else ROWS])
    turned = replace(own, texts=[*own.texts[1:], *own.texts[:1]])
    try:
        right, wrong = (float(np.mean(score(reward, rollout).total)) for rollout in (own, turned))
    except GkdRlError as error:
        yield CheckResult("reward", "failed", str(error))
        return
    words = f"{right:.3g} for references, {wrong:.3g} for references of other rows"
    if right > wrong:
        yield CheckResult("reward", "ok", words)
    else:
        yield CheckResult("reward", "failed", f"{words}: it cannot tell them apart, choose another with reward=NAME.")


def _memory(config: Config, lengths: Lengths, origin: str, codec: TextCodec | None) -> Iterator[CheckResult]:
    """The plan, and whether it fits; what the run writes, and whether the disk has room."""
    tokenizer = None if codec is None else codec.tokenizer
    try:
        plan = plan_memory(config, lengths, Accelerator().device, tokenizer)
    except GkdRlError as error:
        yield CheckResult("memory", "unknown", str(error))
        return
    yield check_disk(config, plan)
    words = f"{plan.peak / GIB:.2f} GiB of {plan.available / GIB:.2f} GiB ({plan.device}) at the peak, in "
    words += f"{plan.largest.name}; prompts of {lengths.prompt} tokens ({origin}), completions of {lengths.completion}"
    state = "ok"
    if plan.peak > plan.available:
        state, words = "failed", f"{words}. It does not fit, {plan.advice()}."
    yield CheckResult("memory", state, "\n".join([words, *plan_lines(plan)]))
