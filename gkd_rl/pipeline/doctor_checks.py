"""The doctor's checks of a run before it costs anything, one after the other; nothing is trained.

`planning/checks.py` has the checks as functions of values; here the values come from the configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from gkd_rl.config import Config, ModelConfig
from gkd_rl.config.choices import Dtype
from gkd_rl.config.rules import alpha_schedule
from gkd_rl.data.task import Task, row_reports, truncation_report
from gkd_rl.errors import DataError, GkdRlError, ModelError
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import Checkpoint, locate
from gkd_rl.models.loading import is_on_hub, load_checkpoint, load_model
from gkd_rl.pipeline.build import ResolvedModels, build_reward, build_task, codec_of, has_weights, resolve_models
from gkd_rl.pipeline.build_trainer import build_server
from gkd_rl.pipeline.cache import model_key, supervised_cache
from gkd_rl.pipeline.memory import longest, plan_memory
from gkd_rl.pipeline.models import build_endpoint, check_teacher
from gkd_rl.pipeline.preflight import check_files
from gkd_rl.planning.checks import (
    CheckResult,
    ReferenceScores,
    check_disk,
    check_ends,
    check_hub,
    check_precision,
    check_teacher_is_better,
    check_template,
    score_references,
    why_not_loaded,
)
from gkd_rl.planning.memory_plan import GIB, Lengths, MemoryPlan, plan_lines
from gkd_rl.training.trainer import score
from gkd_rl.types import Example

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
    low = [key for key, model in _models(config).items() if model.dtype is Dtype.bfloat16]
    yield check_precision(low, device, other_machine=config.scale.memory_gib is not None)
    yield check_hub(_needed_from_hub(config))
    yield from _checkpoints(config)
    try:
        task = build_task(config)
    except GkdRlError as error:
        yield CheckResult("data", "failed", str(error))
        return
    found, train, held_out = _data(config, task)
    yield found
    found, resolved = _tokenizers(config, task)
    yield found
    if resolved is not None and train:
        codec = resolved.codec
        yield _lengths(codec, train)
        yield from _reward(config, codec, train)
        yield from _servers(config, resolved, train[0])
        if held_out:
            yield from _ModelChecks(config, resolved, train, held_out, large).results()
        lengths, origin = longest(config, codec, train), "the longest prompt that the run meets"
    else:
        lengths, origin = Lengths(task.max_prompt_tokens, task.max_completion_tokens), "the limit of prompts"
    yield from _memory(config, lengths, origin, resolved)


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
    for key, model in _models(config).items():
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


def _tokenizers(config: Config, task: Task) -> tuple[CheckResult, ResolvedModels | None]:
    """Student and teacher have the same ids for the same tokens, and share an end."""
    try:
        resolved = resolve_models(config, task, Accelerator().device)
    except ModelError as error:
        loaded = (config.student, config.teacher if has_weights(config.teacher) else None)
        remote = any(is_on_hub(one.path) for one in loaded if one is not None)
        return CheckResult("tokenizers", "unknown" if remote else "failed", str(error)), None
    ends = " or ".join(map(str, resolved.codec.eos_ids))
    shared = "" if resolved.teacher is None else ", shared with the teacher"
    return CheckResult(
        "tokenizers", "ok", f"{resolved.codec.vocabulary} tokens{shared}; id {ends} ends a text"
    ), resolved


def _lengths(codec: TextCodec, train: list[Example]) -> CheckResult:
    """How many texts the token limits truncate."""
    report = truncation_report(codec, train)
    if max(report.prompts.cut, report.references.cut) > report.rows / 2:
        words = f"{report}: raise task.max_prompt_tokens or task.max_completion_tokens. {report.advice()}."
        return CheckResult("lengths", "failed", words)
    return CheckResult("lengths", "ok", str(report))


def _reward(config: Config, codec: TextCodec, train: list[Example]) -> Iterator[CheckResult]:
    """The reward of references is above that of other rows' references."""
    try:
        reward = build_reward(config)
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


def _memory(config: Config, lengths: Lengths, origin: str, resolved: ResolvedModels | None) -> Iterator[CheckResult]:
    """The plan, and whether it fits; what the run writes, and whether the disk has room."""
    try:
        plan = plan_memory(config, lengths, Accelerator().device, resolved)
    except GkdRlError as error:
        yield CheckResult("memory", "unknown", str(error))
        return
    yield check_disk(_kept_bytes(config, plan), Path(config.cache_dir).expanduser())
    words = f"{plan.peak / GIB:.2f} GiB of {plan.available / GIB:.2f} GiB ({plan.device}) at the peak, in "
    words += f"{plan.largest.name}; prompts of {lengths.prompt} tokens ({origin}), completions of {lengths.completion}"
    state = "ok"
    if plan.peak > plan.available:
        state, words = "failed", f"{words}. It does not fit, {plan.advice()}."
    yield CheckResult("memory", state, "\n".join([words, *plan_lines(plan)]))


def _models(config: Config) -> dict[str, ModelConfig]:
    """The student, and the teacher if there is one, by their keys."""
    return {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})


def _needed_from_hub(config: Config) -> dict[str, str]:
    """Hub ids of models, tokenizers, rewards and the data set, each with its kind."""
    paths = [path for model in _models(config).values() for path in (model.path, model.tokenizer)]
    paths += [str(path) for path in _paths(config.reward.components)]
    needed = dict.fromkeys((path for path in paths if path is not None and is_on_hub(path)), "model")
    if config.task.get("data") == "hub" and not config.task.get("data_files"):
        needed[str(config.task["hub_id"])] = "dataset"
    return needed


def _paths(node: object) -> Iterator[object]:
    """Every `path` under the settings of the rewards."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == "path" and isinstance(child, str):
            yield child
        else:
            yield from _paths(child)


def _kept_bytes(config: Config, plan: MemoryPlan) -> int:
    """Bytes of the models that the run writes: the student, and supervised models."""
    held = plan.stages[-1].held
    need = held["student"] if config.save_model else 0
    return need + sum(
        held["student"] if key == "student.sft" else stage.held["teacher"]
        for key in plan.micro_batch_sizes
        for stage in plan.stages
        if key != "trainer" and stage.name.startswith(key.partition(".")[0])
    )


def _servers(config: Config, resolved: ResolvedModels, example: Example) -> Iterator[CheckResult]:
    """A teacher behind a server answers as a teacher has to; a server that generates rollouts takes weights."""
    try:
        if config.teacher is not None and config.teacher.endpoint is not None:
            build_endpoint(config.teacher.endpoint, resolved.codec, example)
            yield CheckResult("endpoint", "ok", f"{config.teacher.endpoint.url} gives the teacher's likeliest tokens")
        model_type = resolved.student.configuration.model_type
        if build_server(config.rollout, model_type, resolved.codec.device) is not None:
            yield CheckResult("endpoint", "ok", f"{config.rollout.vllm.url} generates rollouts")
    except GkdRlError as error:
        yield CheckResult("endpoint", "failed", str(error))


@dataclass(frozen=True)
class _ModelChecks:
    """Checks that need weights.

    Attributes:
        config: of the run.
        resolved: its models.
        train: rows that decide which supervised model is the run's.
        held_out: rows whose references are scored.
        large: load weights of any size.
    """

    config: Config
    resolved: ResolvedModels
    train: list[Example]
    held_out: Sequence[Example]
    large: bool

    def results(self) -> Iterator[CheckResult]:
        """Every check that the weights which are there allow."""
        settings, resolved = self.config.teacher, self.resolved
        student = self._weights(self.config.student, resolved.student)
        yield from self._template(student, resolved.student)
        if settings is None or resolved.teacher is None:
            return
        teacher = self._weights(settings, resolved.teacher)
        yield from self._template(teacher, resolved.teacher)
        if isinstance(teacher, str):
            yield CheckResult("ends", "unknown", teacher)
            yield CheckResult("teacher", "unknown", teacher)
            return
        scores = self._scores(teacher, resolved.teacher)
        yield check_ends(scores)
        if isinstance(student, str):
            yield CheckResult("teacher", "unknown", student)
        else:
            yield check_teacher_is_better(scores, self._scores(student, resolved.student))

    def _weights(self, model: ModelConfig, checkpoint: Checkpoint) -> HiddenStateModel | str:
        """The model as the run takes it, or why it is not loaded."""
        key = checkpoint.key
        try:
            if model.sft is None:
                if checkpoint.place is None:
                    return f"{key}: its weights are drawn at random"
                why = why_not_loaded(checkpoint.place.named, key, large=self.large)
                return why or HiddenStateModel(load_checkpoint(checkpoint))
            adapter = self.config.adapter if key == "student" else None
            codec = codec_of(checkpoint, torch.device("cpu"))
            folder = supervised_cache(self.config, model_key(model, codec, self.train, adapter))
            if not folder.is_dir():
                return f"{key}: the run trains it first"
            why = why_not_loaded(str(folder), key, large=self.large)
            return why or HiddenStateModel(load_model(locate(str(folder), None, key), checkpoint.dtype))
        except GkdRlError as error:
            return f"{key}: {error}"

    def _scores(self, model: HiddenStateModel, checkpoint: Checkpoint) -> ReferenceScores:
        codec = codec_of(checkpoint, torch.device("cpu"))
        return score_references(model, codec, self.held_out, self.config.trainer.head_chunk_tokens)

    def _template(self, model: HiddenStateModel | str, checkpoint: Checkpoint) -> Iterator[CheckResult]:
        """Left out where the tokenizer has no chat template; `unknown` where there are no weights."""
        if not (checkpoint.decoder_only and checkpoint.tokenizer.chat_template):
            return
        if isinstance(model, str):
            yield CheckResult("template", "unknown", model)
            return
        try:
            other = self._scores(model, replace(checkpoint, chat=not checkpoint.chat))
        except ModelError:  # the template does not serve a prompt and its answer
            return
        yield check_template(self._scores(model, checkpoint), other, checkpoint.key, chat=checkpoint.chat)
