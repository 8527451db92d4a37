"""Configuration -> a teacher that is quantised, on another device, or behind a server; and what quantising it cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.build import Models, model_key
from gkd_rl.checkpoint import cache_key
from gkd_rl.choices import Dtype, Quantization
from gkd_rl.config import Config, EndpointConfig, TeacherConfig
from gkd_rl.elsewhere import ModelElsewhere
from gkd_rl.endpoint import EndpointTeacher
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.memory_plan import GIB
from gkd_rl.quantization import check_quantization, quantized
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.teacher_audit import TeacherAudit, kl_between, student_rollouts
from gkd_rl.teacher_outputs import TeacherOutputs
from gkd_rl.tensor_shards import TensorShards
from gkd_rl.types import Example
from gkd_rl.uncertainty import estimate

# How far hidden states of one teacher may be from one another when other completions stand beside them, as a share of
# their norm. A bfloat16 has 8 bits, and LLM.int8() cuts a matrix by what the whole batch holds.
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


def has_weights(settings: TeacherConfig | None) -> bool:
    """The teacher is a model of its own, that is loaded or trained here."""
    return settings is not None and (settings.path is not None or settings.architecture is not None)


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
        placed: HiddenStateModel = ModelElsewhere(inner, there, here, offload=settings.offload)
    else:
        placed = HiddenStateModel(inner).eval()
    placed.codec = model.codec
    return placed


def build_endpoint(settings: EndpointConfig, codec: TextCodec, example: Example) -> EndpointTeacher:
    """The teacher's server, asked once for the words of a prompt.

    Raises:
        ConfigError: the variable of the key is not set.
        ModelError: the student is an encoder-decoder.
        EndpointError: the server does not give what a teacher needs.
    """
    if not codec.decoder_only:
        raise ModelError(
            f"teacher.endpoint.url={settings.url} with an encoder-decoder student: a server tells the words that "
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


def build_outputs(config: Config, models: Models, train: list[Example]) -> TeacherOutputs | None:
    """What the teacher said of fixed text in earlier runs, in a folder that is named by all that decides it."""
    settings, teacher = config.teacher, models.teacher
    if settings is None or teacher is None or settings.output_cache_gib is None:
        return None
    key = cache_key(
        teacher=model_key(settings, teacher.codec if isinstance(teacher.codec, TextCodec) else models.codec, train),
        quantization=settings.quantization.value,
        device=[teacher.device.type, settings.device],
    )
    folder = Path(config.cache_dir).expanduser() / "teacher_outputs" / key
    whole = settings.quantization is Quantization.none
    shards = TensorShards(folder, int(settings.output_cache_gib * GIB))
    return TeacherOutputs(shards, ROUNDING[settings.dtype] if whole else ROUNDING_QUANTIZED)


def audit_teacher(
    config: Config, models: Models, held_out: list[Example], load: Callable[[], HiddenStateModel]
) -> TeacherAudit | None:
    """KL(full precision || quantised) on the student's rollouts; None where nothing is quantised, or by configuration.

    Args:
        config: of the run.
        models: the student, and the quantised teacher.
        held_out: rows that the student is not trained on.
        load: reads the teacher at full precision; it is kept for the measurement only.
    """
    settings, rollout = config.teacher, config.rollout
    if settings is None or models.teacher is None:
        return None
    if settings.quantization is Quantization.none or settings.audit_prompts == 0:
        return None
    full = placed_teacher(load(), replace(settings, quantization=Quantization.none), models.student.device)
    rollouts = student_rollouts(
        models.student,
        Sampler(models.codec, Sampling(rollout.temperature, rollout.top_p, rollout.top_k)),
        held_out[: settings.audit_prompts],
        config.evaluation.batch_size,
        config.seed,
    )
    values = kl_between(full, models.teacher, rollouts, config.trainer.head_chunk_tokens, models.codec.vocabulary)
    kl = estimate(values, config.evaluation.bootstrap_samples, seed=0)
    return TeacherAudit(settings.dtype, settings.quantization, kl)
