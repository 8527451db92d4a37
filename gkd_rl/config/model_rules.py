"""Settings of how rollouts are written, where they contradict one another.

Settings of a checkpoint that contradict one another; what only its configuration can tell is refused in loading.

Settings of a teacher that is quantised, elsewhere or remote, where they contradict one another or the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from gkd_rl.config import Config, EndpointConfig, ModelConfig, TeacherConfig
from gkd_rl.config.choices import DivergenceName, FixedSource, Quantization, RolloutEngine, TeacherPrompts
from gkd_rl.config.launch import processes


def rollout_contradictions(config: Config) -> Iterator[str]:
    """One sentence for each problem."""
    rollout = config.rollout
    if rollout.engine is not RolloutEngine.vllm:
        return
    if rollout.static_cache:
        yield (
            "rollout.static_cache=true with rollout.engine=vllm has no effect, the server has a cache of its own: "
            "set rollout.static_cache=false, or rollout.engine=transformers."
        )
    if processes() > 1:
        yield (
            f"rollout.engine=vllm with {processes()} processes is not served: one process sends the weights. "
            "Launch one, or set rollout.engine=transformers."
        )
    if config.lmbda == 0:
        yield (
            "rollout.engine=vllm with lmbda=0 has nothing to write: set rollout.engine=transformers, or lmbda above 0."
        )
    yield from check_url("rollout.vllm.url", rollout.vllm.url)


def check_url(key: str, url: str, of_secrets: str = "") -> Iterator[str]:
    """An address without secrets: it is written to the run's files.

    Args:
        key: of the setting.
        url: its value.
        of_secrets: where a secret goes instead, for the message.
    """
    takes = f"{key} takes http:// or https:// with a host, e.g. http://localhost:8000"
    try:
        parts = urlsplit(url)
        good, secret = parts.scheme in ("http", "https") and bool(parts.hostname), parts.password or parts.username
        good = good and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        good, secret = False, None
    if secret:
        yield f"{key} holds a user or a password: {takes}{of_secrets}."
    elif not good:
        yield f"{key}={url} is no address of a server: {takes}."


_OF_CHECKPOINTS = ("gguf_file", "keep_layers", "dropout")


def check_loading(config: Config) -> Iterator[str]:
    """Layers that no model has, and settings of a checkpoint where there is none."""
    models = {"student": config.student} | ({} if config.teacher is None else {"teacher": config.teacher})
    for key, model in models.items():
        yield from _layers(key, model)
        if model.path is None:
            for name in _OF_CHECKPOINTS:
                value = getattr(model, name)
                if value is not None:
                    yield (
                        f"{key}.{name}={value} with {key}.path=null has nothing to read: set {key}.path to a folder or "
                        f"Hub id, or {key}.{name}=null."
                    )


def _layers(key: str, model: ModelConfig) -> Iterator[str]:
    """No layer, a negative one, one that comes twice, or a falling order."""
    keep = model.keep_layers
    if keep is None:
        return
    if not keep or keep[0] < 0 or any(one >= other for one, other in pairwise(keep)):
        yield (
            f"{key}.keep_layers={keep}: {key}.keep_layers takes one or more layers, counted from 0, each once and in "
            "rising order, e.g. [0,3,6], or null for all of them."
        )


def teacher_contradictions(config: Config) -> Iterator[str]:
    """One sentence for each problem."""
    teacher = config.teacher
    if teacher is None:
        return
    if teacher.initial_student and teacher.path is None and teacher.architecture is None:
        for name, value, neutral in (*_placement(teacher), ("endpoint", "set" if teacher.endpoint else None, "null")):
            if value is not None:
                yield (
                    f"teacher.{name}={value} with teacher.initial_student=true: the student before training is "
                    f"imitated, at full precision and beside the student. Set teacher.{name}={neutral}, "
                    "or teacher.initial_student=false."
                )
    if teacher.offload and teacher.quantization is not Quantization.none:
        yield (
            f"teacher.offload=true with teacher.quantization={teacher.quantization.value}: quantised weights stay "
            "where they are computed. Set teacher.offload=false, or teacher.quantization=none."
        )
    if teacher.output_cache_gib is not None:
        yield from _output_cache(config, teacher, teacher.output_cache_gib)
    if teacher.endpoint is not None:
        yield from _endpoint(config, teacher, teacher.endpoint)


def _output_cache(config: Config, teacher: TeacherConfig, gib: float) -> Iterator[str]:
    """A cache of what is never asked, or never asked twice."""
    without_use = (
        (teacher.endpoint is not None, "teacher.endpoint, a server that tells words", "teacher.endpoint=null"),
        (
            teacher.initial_student,
            "teacher.initial_student=true, where the student before training is imitated",
            "teacher.initial_student=false",
        ),
        (
            teacher.prompts is TeacherPrompts.shuffled,
            "teacher.prompts=shuffled, which puts other prompts to a text in every step",
            "teacher.prompts=own",
        ),
        (config.lmbda == 1, "lmbda=1, where all text is new", "lmbda below 1"),
        (
            config.divergence.name is DivergenceName.cross_entropy,
            "divergence=cross_entropy, which reads no teacher",
            "choose another with divergence=jsd",
        ),
    )
    for is_so, what, instead in without_use:
        if is_so:
            yield (
                f"teacher.output_cache_gib={gib} keeps what a teacher's weights say of fixed text and has no effect "
                f"with {what}: set teacher.output_cache_gib=null, or {instead}."
            )
            return


def _placement(teacher: TeacherConfig) -> list[tuple[str, str | None, str]]:
    """(setting, its value where it is not the neutral one, the neutral one) of where and how weights are kept."""
    quantization = None if teacher.quantization is Quantization.none else teacher.quantization.value
    offload = "true" if teacher.offload else None
    return [("quantization", quantization, "none"), ("device", teacher.device, "null"), ("offload", offload, "false")]


def _endpoint(config: Config, teacher: TeacherConfig, endpoint: EndpointConfig) -> Iterator[str]:
    """A server holds the teacher, and tells its likeliest words only."""
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
            f"teacher.chat={other} with teacher.endpoint and student.chat={own}: the server reads prompts as "
            f"the student renders them. Set teacher.chat={own}."
        )
    divergence = config.divergence
    if divergence.name is DivergenceName.cross_entropy:
        yield "divergence=cross_entropy reads no teacher: set teacher=none, or choose another with divergence=jsd."
    for name in ("temperature", "teacher_temperature"):
        value = getattr(divergence, name)
        if value != 1:
            yield (
                f"divergence.{name}={value} with teacher.endpoint needs log-probabilities of all words: "
                f"set divergence.{name}=1."
            )
    if divergence.teacher_top_k is not None:
        yield (
            f"divergence.teacher_top_k={divergence.teacher_top_k} with teacher.endpoint has no effect, the server "
            f"tells teacher.endpoint.top_k={endpoint.top_k} words: set divergence.teacher_top_k=null."
        )
    if config.fixed_data.source is FixedSource.teacher and config.lmbda < 1:
        yield (
            "fixed_data=teacher_samples with teacher.endpoint: the server scores text and writes none here. "
            "Set fixed_data=references, or lmbda=1."
        )
    yield from check_url("teacher.endpoint.url", endpoint.url, "; name the key's variable in api_key_variable")
