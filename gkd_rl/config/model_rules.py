"""Rules between settings of the models and of how rollouts are sampled: source of weights, teacher, server, engine.

See `rules.py` for what a rule is. What only a checkpoint's files can show is checked when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from gkd_rl.config import Config, EndpointConfig, ModelConfig, TeacherConfig
from gkd_rl.config.choices import DivergenceName, FixedSource, Quantization, RolloutEngine, TeacherPrompts
from gkd_rl.config.launch import processes

# --- both models -----------------------------------------------------------------------------------------------------

_CHECKPOINT_ONLY = ("gguf_file", "keep_layers", "dropout")


def _models(config: Config) -> Iterator[str]:
    """Each model has one source of weights, valid layers, and settings of a checkpoint only where there is one."""
    for key, model in {"student": config.student, "teacher": config.teacher}.items():
        if model is None:
            continue
        if not (isinstance(model, TeacherConfig) and _has_no_weights(model)):
            yield from _source(key, model)
        yield from _layers(key, model)
        for name in _CHECKPOINT_ONLY if model.path is None else ():
            value = getattr(model, name)
            if value is not None:
                yield (
                    f"{key}.{name}={value} with {key}.path=null has no effect, there is no checkpoint: set {key}.path "
                    f"to a folder or Hub id, or {key}.{name}=null."
                )


def _has_no_weights(teacher: TeacherConfig) -> bool:
    """A teacher behind an endpoint, or the initial student without another model to measure against."""
    return teacher.endpoint is not None or _is_initial_student(teacher)


def _is_initial_student(teacher: TeacherConfig) -> bool:
    """The student before training is the only teacher."""
    return teacher.initial_student and teacher.path is None and teacher.architecture is None


def _source(key: str, model: ModelConfig) -> Iterator[str]:
    """Weights come from a checkpoint or from an architecture that is trained in a supervised stage."""
    if (model.path is None) == (model.architecture is None):
        other = "null" if model.architecture is None else "set"
        yield (
            f"{key}.path={model.path} with {key}.architecture {other}: {key} takes exactly one of the two. Type "
            f"{key}.path=FOLDER_OR_HUB_ID {key}.architecture=null, or {key}.path=null with an architecture."
        )
    if model.path is None and model.sft is None:
        yield f"{key}.sft=null leaves a model of random weights: give {key}.sft its settings, or set {key}.path."


def _layers(key: str, model: ModelConfig) -> Iterator[str]:
    """Layers to keep are not empty, not negative, and rise strictly."""
    keep = model.keep_layers
    if keep is None:
        return
    if not keep or keep[0] < 0 or any(one >= other for one, other in pairwise(keep)):
        yield (
            f"{key}.keep_layers={keep}: {key}.keep_layers takes one or more layers, counted from 0, each once and in "
            "rising order, e.g. [0,3,6], or null for all of them."
        )


# --- the teacher -----------------------------------------------------------------------------------------------------


def _teacher(config: Config) -> Iterator[str]:
    """Prompts, quantisation, placement, output cache and endpoint of the teacher fit one another and the objective."""
    teacher = config.teacher
    if teacher is None:
        return
    if teacher.prompts is TeacherPrompts.shuffled and config.trainer.prompts_per_step < 2:
        yield (
            f"trainer.prompts_per_step={config.trainer.prompts_per_step} with teacher.prompts=shuffled leaves no other "
            "prompt: set trainer.prompts_per_step to 2 or more, or teacher.prompts=own."
        )
    if _is_initial_student(teacher):
        endpoint = ("endpoint", None if teacher.endpoint is None else "set", "null")
        for name, value, neutral in (*_placement(teacher), endpoint):
            if value is not None:
                yield (
                    f"teacher.{name}={value} with teacher.initial_student=true: the teacher is the student before "
                    "training, with the student's precision and device. "
                    f"Set teacher.{name}={neutral}, or teacher.initial_student=false."
                )
    if teacher.offload and teacher.quantization is not Quantization.none:
        yield (
            f"teacher.offload=true with teacher.quantization={teacher.quantization.value}: quantised weights cannot be "
            "moved between devices. Set teacher.offload=false, or teacher.quantization=none."
        )
    if teacher.output_cache_gib is not None:
        yield from _output_cache(config, teacher, teacher.output_cache_gib)
    if teacher.endpoint is not None:
        yield from _endpoint(config, teacher, teacher.endpoint)


def _placement(teacher: TeacherConfig) -> list[tuple[str, str | None, str]]:
    """Quantisation, device and offload as (setting, its value or None if neutral, the neutral value)."""
    quantization = None if teacher.quantization is Quantization.none else teacher.quantization.value
    offload = "true" if teacher.offload else None
    return [("quantization", quantization, "none"), ("device", teacher.device, "null"), ("offload", offload, "false")]


def _output_cache(config: Config, teacher: TeacherConfig, gib: float) -> Iterator[str]:
    """The cache is for a teacher in this process that scores the same prompts and fixed completions more than once."""
    without_use = (
        (
            teacher.endpoint is not None,
            "teacher.endpoint, a server that returns log-probabilities only",
            "teacher.endpoint=null",
        ),
        (
            teacher.initial_student,
            "teacher.initial_student=true, where the teacher is the student before training",
            "teacher.initial_student=false",
        ),
        (
            teacher.prompts is TeacherPrompts.shuffled,
            "teacher.prompts=shuffled, which gives a completion another prompt in every step",
            "teacher.prompts=own",
        ),
        (config.lmbda == 1, "lmbda=1, where all completions are newly sampled", "lmbda below 1"),
        (
            config.divergence.name is DivergenceName.cross_entropy,
            "divergence=cross_entropy, which uses no teacher",
            "choose another with divergence=jsd",
        ),
    )
    for applies, setting, instead in without_use:
        if applies:
            yield (
                f"teacher.output_cache_gib={gib} stores the teacher's outputs for fixed completions and has no effect "
                f"with {setting}: set teacher.output_cache_gib=null, or {instead}."
            )
            return


def _endpoint(config: Config, teacher: TeacherConfig, endpoint: EndpointConfig) -> Iterator[str]:
    """A server holds the teacher's weights and returns the likeliest tokens of each position only."""
    held: list[tuple[str, Any, str]] = [
        (name, value if isinstance(value, str) else "set", "null")
        for name in ("path", "gguf_file", "keep_layers", "architecture", "tokenizer", "sft")
        if (value := getattr(teacher, name)) is not None
    ]
    held += [one for one in _placement(teacher) if one[1] is not None] if not teacher.initial_student else []
    for name, value, neutral in held:
        yield (
            f"teacher.{name}={value} with teacher.endpoint has no effect, the server holds the teacher: "
            f"set teacher.{name}={neutral}, or teacher.endpoint=null."
        )
    own, other = (str(model.chat).lower() for model in (config.student, teacher))
    if own != other:
        yield (
            f"teacher.chat={other} with teacher.endpoint and student.chat={own}: the server receives prompts as "
            f"the student renders them. Set teacher.chat={own}."
        )
    divergence = config.divergence
    if divergence.name is DivergenceName.cross_entropy:
        yield "divergence=cross_entropy uses no teacher: set teacher=none, or choose another with divergence=jsd."
    for name in ("temperature", "teacher_temperature"):
        value = getattr(divergence, name)
        if value != 1:
            yield (
                f"divergence.{name}={value} with teacher.endpoint needs log-probabilities of the whole vocabulary: "
                f"set divergence.{name}=1."
            )
    if divergence.teacher_top_k is not None:
        yield (
            f"divergence.teacher_top_k={divergence.teacher_top_k} with teacher.endpoint has no effect, the server "
            f"returns teacher.endpoint.top_k={endpoint.top_k} tokens: set divergence.teacher_top_k=null."
        )
    if config.fixed_data.source is FixedSource.teacher and config.lmbda < 1:
        yield (
            "fixed_data=teacher_samples with teacher.endpoint: the server scores text and generates none for this run. "
            "Set fixed_data=references, or lmbda=1."
        )
    yield from _url("teacher.endpoint.url", endpoint.url, "; name the key's variable in api_key_variable")


# --- rollouts --------------------------------------------------------------------------------------------------------


def _rollout(config: Config) -> Iterator[str]:
    """A vLLM server has rollouts to sample, one process that sends it weights, and an address."""
    rollout = config.rollout
    if rollout.engine is not RolloutEngine.vllm:
        return
    if rollout.static_cache:
        yield (
            "rollout.static_cache=true with rollout.engine=vllm has no effect, the server has its own cache: "
            "set rollout.static_cache=false, or rollout.engine=transformers."
        )
    if processes() > 1:
        yield (
            f"rollout.engine=vllm with {processes()} processes is not supported: one process sends the weights. "
            "Start one, or set rollout.engine=transformers."
        )
    if config.lmbda == 0:
        yield (
            "rollout.engine=vllm with lmbda=0 has no rollouts to sample: set rollout.engine=transformers, or lmbda "
            "above 0."
        )
    yield from _url("rollout.vllm.url", rollout.vllm.url)


def _url(key: str, url: str, secret_setting: str = "") -> Iterator[str]:
    """An address holds no secret, because it is written to the run's files.

    Args:
        key: dotted key of the setting.
        url: its value.
        secret_setting: end of the message that names where a secret belongs.
    """
    takes = f"{key} takes http:// or https:// with a host, e.g. http://localhost:8000"
    try:
        parts = urlsplit(url)
        valid, secret = parts.scheme in ("http", "https") and bool(parts.hostname), parts.password or parts.username
        valid = valid and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        valid, secret = False, None
    if secret:
        yield f"{key} holds a user or a password: {takes}{secret_setting}."
    elif not valid:
        yield f"{key}={url} is not the address of a server: {takes}."


MODEL_RULES = (_models, _teacher, _rollout)
