"""Models as the run's own stage takes them: loaded, reused from the cache, or trained on the references first."""

from __future__ import annotations

import copy
import logging
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator

from gkd_rl import build
from gkd_rl.adapter import AdaptedModel, InitialView
from gkd_rl.architecture import HiddenStateModel
from gkd_rl.build_adapter import attach_adapter
from gkd_rl.build_sampler import build_server
from gkd_rl.build_teacher import audit_teacher, build_endpoint, has_weights, placed_teacher
from gkd_rl.build_trainer import build_supervised_trainer
from gkd_rl.checkpoint import save_model
from gkd_rl.choices import FixedSource
from gkd_rl.config import Config, ModelConfig
from gkd_rl.cost import CostTotals
from gkd_rl.launched import is_main_process
from gkd_rl.ranks import from_all, own_seed, progress
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.tasks.task import Task
from gkd_rl.teacher_audit import TeacherAudit
from gkd_rl.teacher_samples import TeacherSamples, write_samples
from gkd_rl.trainer import StepRecord
from gkd_rl.types import Example
from reward_models.entry_lock import entry_lock

log = logging.getLogger(__name__)


def prepare_models(config: Config, task: Task, train: list[Example], accelerator: Accelerator) -> build.Models:
    """Teacher and student, each loaded, reused from the cache, or trained on the references."""
    settings = config.teacher
    own_teacher = has_weights(settings)
    codec, own = build.build_codecs(config, settings if own_teacher else None, task, accelerator.device)
    server = build_server(config, codec)
    teacher, endpoint = None, None
    if settings is not None and settings.endpoint is not None:
        endpoint = build_endpoint(settings.endpoint, codec, train[0])
    elif settings is not None and own_teacher:
        full = _prepare_model(config, settings, "teacher", own or codec, train, accelerator)
        full.codec = own
        teacher = placed_teacher(full, settings, accelerator.device)
    student = _prepare_model(config, config.student, "student", codec, train, accelerator).to(accelerator.device)
    if config.adapter is None:
        initial = copy.deepcopy(student).requires_grad_(False).eval()
    else:
        student = attach_adapter(config, student.model)
        initial = InitialView(student)
    critic = build.build_critic(config, student)
    return build.Models(student, teacher, initial, codec, critic, endpoint=endpoint, server=server)


def audit_of(
    config: Config, models: build.Models, train: list[Example], held_out: list[Example], accelerator: Accelerator
) -> TeacherAudit | None:
    """What quantising the teacher cost, on rollouts of held-out prompts."""
    settings = config.teacher

    def load() -> HiddenStateModel:
        assert settings is not None and models.teacher is not None
        own = models.teacher.codec
        codec = own if isinstance(own, TextCodec) else models.codec
        full = _prepare_model(config, settings, "teacher", codec, train, accelerator)
        full.codec = own
        return full

    audit = audit_teacher(config, models, held_out, load)
    if audit is not None:
        log.info("teacher audit: %s", audit)
    return audit


def with_samples(
    config: Config, models: build.Models, train: list[Example], prompts: list[Example], cost: CostTotals
) -> build.Models:
    """The teacher's completion of every prompt of the run's own stage, where that has steps on them."""
    reads = config.fixed_data.source is FixedSource.teacher and config.lmbda < 1
    if not reads or models.teacher is None or config.teacher is None:
        return models
    own = models.teacher.codec
    key = build.model_key(config.teacher, own if isinstance(own, TextCodec) else models.codec, train)
    folder = build.samples_cache(config, key, models.codec, prompts)
    sampler = Sampler(models.codec, Sampling(config.fixed_data.temperature))
    start = time.perf_counter()
    with progress(len(prompts), "teacher: samples", "row") as bar:

        def after_chunk(done: int) -> None:
            bar.update(done - bar.n)

        seed = config.fixed_data.seed
        ids = write_samples(folder, models.teacher, sampler, prompts, seed, after_chunk=after_chunk)
    cost.add({"time/teacher_samples": time.perf_counter() - start})
    log.info("teacher: samples in %s", folder)
    return replace(models, samples=TeacherSamples(models.teacher, ids))


def _prepare_model(
    config: Config, settings: ModelConfig, key: str, codec: TextCodec, train: list[Example], accelerator: Accelerator
) -> HiddenStateModel:
    """One model after its supervised stage, on the CPU or where it was trained; of several runs, one trains it.

    A student with an adapter trains one in that stage, which is merged at its end.
    """
    adapter = config.adapter if key == "student" else None
    if settings.sft is None:
        return HiddenStateModel(build.fresh_model(settings, codec.tokenizer, key))
    folder = build.supervised_cache(config, build.model_key(settings, codec, train, adapter))
    with entry_lock(folder) if is_main_process() and not folder.is_dir() else nullcontext():
        if all(from_all(folder.is_dir())):
            log.info("%s: reused the supervised model %s", key, folder)
            stored = build.load_model(str(folder), None, getattr(torch, settings.dtype.value), f"{key} (cached)")
            return HiddenStateModel(stored)
        torch.manual_seed(own_seed(settings.seed))  # of dropout; what other models drew is no part of this one
        model = HiddenStateModel(build.fresh_model(settings, codec.tokenizer, key)).to(accelerator.device)
        if adapter is not None:
            model = attach_adapter(config, model.model)
        trainer = build_supervised_trainer(model, settings, codec, train, accelerator, config.guard.max_skipped)
        with progress(settings.sft.steps, f"{key}: supervised", "step") as bar:

            def after_step(step: int, record: StepRecord) -> None:
                trainer.guard.stop_if_exhausted(step, f"This was the supervised stage of the {key}. ")
                bar.set_postfix(loss=f"{record.metrics['loss']:.3f}", refresh=False)
                bar.update()

            trainer.run(settings.sft.steps, after_step)
        if isinstance(model, AdaptedModel):
            model = HiddenStateModel(model.merge())
        if accelerator.is_main_process:
            save_model(
                folder, model.model, codec.tokenizer, f"Supervised {key} of gkd_rl, {settings.sft.steps} steps.\n"
            )
        accelerator.free_memory()  # it would keep the wrapper of this stage
        accelerator.wait_for_everyone()
        log.info("%s: kept the supervised model in %s", key, folder)
        return model
