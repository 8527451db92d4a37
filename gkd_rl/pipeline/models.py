"""The models of a run as its own stage takes them: loaded, reused from the cache, or trained on the references first.

And what a teacher can be beside a plain model on the student's device: quantised (with an audit of what that costs),
on another device or offloaded, behind a server, with its samples and outputs kept on disk.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from gkd_rl.config import Config, EndpointConfig, ModelConfig, TeacherConfig
from gkd_rl.config.choices import Dtype, FixedSource, Quantization
from gkd_rl.config.launch import is_main_process
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.evaluation.evaluator import TeacherAudit, kl_between, student_rollouts
from gkd_rl.evaluation.uncertainty import estimate
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Sampler, Sampling
from gkd_rl.models.adapter import AdaptedModel, InitialView
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import Checkpoint, locate
from gkd_rl.models.loading import load_checkpoint, load_model, save_model
from gkd_rl.models.placement import PlacedModel, check_quantization, quantized
from gkd_rl.models.remote_teacher import EndpointTeacher
from gkd_rl.pipeline.build import Models, ResolvedModels, attach_adapter, build_critic
from gkd_rl.pipeline.build_trainer import build_server, build_supervised_trainer
from gkd_rl.pipeline.cache import cache_key, model_key, samples_cache, supervised_cache
from gkd_rl.planning.memory_plan import GIB
from gkd_rl.training.cost import CostTotals
from gkd_rl.training.processes import gather_objects, progress, rank_seed
from gkd_rl.training.teacher_data import TeacherOutputCache, TeacherSamples, TensorShards, generate_teacher_samples
from gkd_rl.training.trainer import StepRecord
from gkd_rl.types import Example
from reward_models.guard import entry_lock

log = logging.getLogger(__name__)
# How far hidden states of one teacher may be from one another when other completions stand beside them, as a share of
# their norm. A bfloat16 has 8 bits, and LLM.int8() cuts a matrix by the values of the whole batch.
ROUNDING = {Dtype.float32: 1e-3, Dtype.bfloat16: 5e-2}
ROUNDING_QUANTIZED = 1e-1


def check_teacher(settings: TeacherConfig | None) -> None:
    """Refuse, before anything is loaded, a teacher that this machine cannot hold.

    Raises:
        ModelError: bitsandbytes is missing.
        ConfigError: the device does not exist.
    """
    if settings is None:
        return
    check_quantization(settings.quantization, "teacher.quantization")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    names = [] if found is None else [f"{found.type}:{i}" for i in range(torch.accelerator.device_count())]
    if settings.device not in (None, "cpu", *names):
        raise ConfigError([
            f"teacher.device={settings.device}: this machine has no such device; teacher.device takes "
            f"{', '.join(['cpu', *names])}, or null for the student's."
        ])  # fmt: skip


def placed_teacher(model: HiddenStateModel, settings: TeacherConfig, here: torch.device) -> HiddenStateModel:
    """The teacher, frozen, quantised and where it is to be.

    Args:
        model: at full precision, wherever it was loaded or trained.
        settings: quantization, device and offload.
        here: the student's device, where the teacher's numbers are needed.
    """
    there = here if settings.device is None else torch.device(settings.device)
    inner = quantized(model.model.cpu(), settings.quantization, torch.device("cpu") if settings.offload else there)
    if settings.offload or there != here:
        placed: HiddenStateModel = PlacedModel(inner, there, here, offload=settings.offload)
    else:
        placed = HiddenStateModel(inner).eval()
    placed.codec = model.codec
    return placed


def build_endpoint(settings: EndpointConfig, codec: TextCodec, example: Example) -> EndpointTeacher:
    """The teacher's server, after one request for the tokens of a prompt.

    Raises:
        ConfigError: the variable of the key is not set.
        ModelError: the student is an encoder-decoder.
        EndpointError: the server does not give what a teacher needs.
    """
    if not codec.decoder_only:
        raise ModelError(
            f"teacher.endpoint.url={settings.url} with an encoder-decoder student: a server gives the tokens that "
            "continue a prompt, so take a decoder-only student, or a teacher of your own (teacher=t5_small)."
        )
    key, variable = None, settings.api_key_variable
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not (key.isascii() and key.isprintable() and key):
            raise ConfigError([
                f"teacher.endpoint.api_key_variable={variable}: the environment has no key under that name; "
                f"export {variable}=KEY, or set teacher.endpoint.api_key_variable=null."
            ])  # fmt: skip
    teacher = EndpointTeacher(
        url=settings.url,
        model=settings.model,
        top_k=settings.top_k,
        vocabulary=codec.vocabulary,
        timeout=settings.timeout,
        parallel=settings.parallel,
        api_key=key,
    )
    ids = codec.prompts([example]).ids_PS[0].tolist()
    teacher.check([*ids, codec.eos_ids[0]], lambda word: str(codec.tokenizer.decode([word])))
    return teacher


def build_teacher_output_cache(
    config: Config, resolved: ResolvedModels, models: Models, train: list[Example]
) -> TeacherOutputCache | None:
    """The teacher's hidden states on fixed text from earlier runs, in a folder named by their hash."""
    settings, teacher = config.teacher, models.teacher
    if settings is None or teacher is None or settings.output_cache_gib is None:
        return None
    key = cache_key(
        teacher=model_key(settings, resolved.codec_of_teacher, train),
        quantization=settings.quantization.value,
        device=[teacher.device.type, settings.device],
    )
    folder = Path(config.cache_dir).expanduser() / "teacher_outputs" / key
    whole = settings.quantization is Quantization.none
    shards = TensorShards(folder, int(settings.output_cache_gib * GIB))
    return TeacherOutputCache(shards, ROUNDING[settings.dtype] if whole else ROUNDING_QUANTIZED)


def audit_teacher(
    config: Config,
    resolved: ResolvedModels,
    models: Models,
    train: list[Example],
    held_out: list[Example],
    accelerator: Accelerator,
) -> TeacherAudit | None:
    """KL(full precision || quantised) on the student's rollouts; None where nothing is quantised, or by configuration.

    Args:
        config: of the run.
        resolved: its checkpoints: the teacher is read again at full precision, for this measurement only.
        models: the student, and the quantised teacher.
        train: rows that decide which supervised model is the run's.
        held_out: rows that the student is not trained on.
        accelerator: of the run.
    """
    settings, rollout = config.teacher, config.rollout
    if settings is None or models.teacher is None:
        return None
    if settings.quantization is Quantization.none or settings.audit_prompts == 0:
        return None
    full = _prepare_teacher(config, resolved, train, accelerator)
    full = placed_teacher(full, replace(settings, quantization=Quantization.none), models.student.device)
    rollouts = student_rollouts(
        models.student,
        Sampler(models.codec, Sampling(rollout.temperature, rollout.top_p, rollout.top_k)),
        held_out[: settings.audit_prompts],
        config.evaluation.batch_size,
        config.seed,
    )
    values = kl_between(full, models.teacher, rollouts, config.trainer.head_chunk_tokens, models.codec.vocabulary)
    kl = estimate(values, config.evaluation.bootstrap_samples, seed=0)
    audit = TeacherAudit(settings.dtype, settings.quantization, kl)
    log.info("teacher audit: %s", audit)
    return audit


def prepare_models(config: Config, resolved: ResolvedModels, train: list[Example], accelerator: Accelerator) -> Models:
    """Teacher and student, each loaded, reused from the cache, or trained on the references."""
    settings, codec = config.teacher, resolved.codec
    server = build_server(config.rollout, resolved.student.configuration.model_type, codec.device)
    teacher, endpoint = None, None
    if settings is not None and settings.endpoint is not None:
        endpoint = build_endpoint(settings.endpoint, codec, train[0])
    elif settings is not None and resolved.teacher is not None:
        full = _prepare_teacher(config, resolved, train, accelerator)
        teacher = placed_teacher(full, settings, accelerator.device)
    student = _prepare_model(config, config.student, resolved.student, codec, train, accelerator)
    student = student.to(accelerator.device)
    if config.adapter is None:
        initial = copy.deepcopy(student).requires_grad_(False).eval()
    else:
        student = attach_adapter(config, student.model, resolved.student.place)
        initial = InitialView(student)
    critic = build_critic(config, student)
    return Models(student, teacher, initial, codec, critic, endpoint=endpoint, server=server)


def with_samples(
    config: Config,
    resolved: ResolvedModels,
    models: Models,
    train: list[Example],
    prompts: list[Example],
    cost: CostTotals,
) -> Models:
    """The teacher's completion of every prompt of the run's own stage, where that has steps on them."""
    reads = config.fixed_data.source is FixedSource.teacher and config.lmbda < 1
    if not reads or models.teacher is None or config.teacher is None:
        return models
    key = model_key(config.teacher, resolved.codec_of_teacher, train)
    folder = samples_cache(config, key, models.codec, prompts)
    sampler = Sampler(models.codec, Sampling(config.fixed_data.temperature))
    start = time.perf_counter()
    with progress(len(prompts), "teacher: samples", "row") as bar:

        def after_chunk(done: int) -> None:
            bar.update(done - bar.n)

        seed = config.fixed_data.seed
        ids = generate_teacher_samples(folder, models.teacher, sampler, prompts, seed, after_chunk=after_chunk)
    cost.add({"time/teacher_samples": time.perf_counter() - start})
    log.info("teacher: samples in %s", folder)
    return replace(models, samples=TeacherSamples(models.teacher, ids))


def _prepare_teacher(
    config: Config, resolved: ResolvedModels, train: list[Example], accelerator: Accelerator
) -> HiddenStateModel:
    """The teacher at full precision, after its supervised stage."""
    settings, checkpoint = config.teacher, resolved.teacher
    assert settings is not None and checkpoint is not None
    model = _prepare_model(config, settings, checkpoint, resolved.codec_of_teacher, train, accelerator)
    model.codec = resolved.teacher_codec
    return model


def _prepare_model(
    config: Config,
    settings: ModelConfig,
    checkpoint: Checkpoint,
    codec: TextCodec,
    train: list[Example],
    accelerator: Accelerator,
) -> HiddenStateModel:
    """One model after its supervised stage, on the CPU or where it was trained; of several runs, one trains it.

    A student with an adapter trains one in that stage, which is merged at its end.
    """
    key = checkpoint.key
    adapter = config.adapter if key == "student" else None
    if settings.sft is None:
        return HiddenStateModel(load_checkpoint(checkpoint))
    folder = supervised_cache(config, model_key(settings, codec, train, adapter))
    with entry_lock(folder) if is_main_process() and not folder.is_dir() else nullcontext():
        if all(gather_objects(folder.is_dir())):
            log.info("%s: reused the supervised model %s", key, folder)
            return HiddenStateModel(load_model(locate(str(folder), None, f"{key} (cached)"), checkpoint.dtype))
        torch.manual_seed(rank_seed(settings.seed))  # of dropout; what other models drew is no part of this one
        model = HiddenStateModel(load_checkpoint(checkpoint)).to(accelerator.device)
        if adapter is not None:
            model = attach_adapter(config, model.model, checkpoint.place)
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
