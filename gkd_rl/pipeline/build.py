"""Configuration -> objects: the task, the reward, the models as far as they are known before loading, the adapter.

The only place that instantiates a `_target_`. `resolve_models` finds out everything about student and teacher that
their files and settings determine, once; preflight, planning, preparation and evaluation take its result.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_rl.config import Config, DivergenceConfig, ModelConfig, TeacherConfig
from gkd_rl.config.choices import AdapterKind
from gkd_rl.data.task import Task
from gkd_rl.errors import ConfigError, GkdRlError, ModelError
from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.generation.vllm import Server
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import Checkpoint, LoadOptions, Place, end_ids, locate, read_config
from gkd_rl.models.loading import check_same_ends, check_same_vocabulary, load_tokenizer, new_configuration
from gkd_rl.models.remote_teacher import EndpointTeacher
from gkd_rl.models.value_head import FILE as VALUE_HEAD_FILE
from gkd_rl.models.value_head import Critic, ValueHead
from gkd_rl.training.teacher_data import TeacherOutputCache, TeacherSamples
from gkd_rl.types import Example
from reward_models.composite import Composite
from reward_models.guard import Guard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The models of a run, on the device, and how text reaches them.

    Attributes:
        student: is trained.
        teacher: is imitated, or only measured against; None without one, and for one behind a server.
        initial: the student before training, frozen.
        codec: text <-> ids.
        critic: PPO's value head.
        samples: the teacher's completion of every training prompt, where steps train on them.
        endpoint: the server of a teacher that is behind one.
        outputs: the teacher's hidden states on fixed text, where they are cached.
        server: generates the rollouts, where this process does not.
    """

    student: HiddenStateModel
    teacher: HiddenStateModel | None
    initial: HiddenStateModel
    codec: TextCodec
    critic: Critic | None = None
    samples: TeacherSamples | None = None
    endpoint: EndpointTeacher | None = None
    outputs: TeacherOutputCache | None = None
    server: Server | None = None


def construct(node: dict[str, Any], key: str) -> Any:
    """Build the object that a config node names.

    Raises:
        ConfigError: its class does not take these arguments.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, GkdRlError):
            raise cause from None
        raise ConfigError(
            [f"{key}: {node.get('_target_')} cannot be built: {str(cause).partition(chr(10))[0]}."]
        ) from error


def build_task(config: Config) -> Task:
    """The data set of the run."""
    return construct(config.task, "task")


def build_reward(config: Config) -> Composite | None:
    """The weighted reward, None without components."""
    components = {name: construct(node, f"reward.components.{name}") for name, node in config.reward.components.items()}
    settings = config.reward
    guard = Guard(
        batch_size=settings.batch_size,
        cache_size=settings.cache_size,
        timeout=settings.timeout,
        on_failure=settings.on_failure.value,
        failure_value=settings.failure_value,
    )
    return Composite(components, settings.weights, guard) if components else None


@dataclass(frozen=True)
class ResolvedModels:
    """A run's models as far as they are known before any weight is read; resolved once.

    Attributes:
        student: is trained.
        teacher: is imitated; None without one, and for one that is not loaded here.
        codec: text <-> ids of the run, which is the student's.
        teacher_codec: the teacher's, where it renders prompts differently.
    """

    student: Checkpoint
    teacher: Checkpoint | None
    codec: TextCodec
    teacher_codec: TextCodec | None

    @property
    def codec_of_teacher(self) -> TextCodec:
        """The codec that the teacher's prompts go through."""
        return self.teacher_codec or self.codec


def resolve_models(config: Config, task: Task, device: torch.device) -> ResolvedModels:
    """Resolve the student and, if it is loaded or trained here, the teacher. No weights are read.

    What ends a text of either model ends every text of the run.

    Args:
        config: of the run.
        task: its data.
        device: of the ids.

    Raises:
        ModelError: a checkpoint is missing or unusable, or the two models do not share a vocabulary.
    """
    student = resolve_checkpoint(config.student, "student", task)
    codec = codec_of(student, device)
    settings = config.teacher
    if settings is None or not has_weights(settings):
        return ResolvedModels(student, None, codec, None)
    teacher = resolve_checkpoint(settings, "teacher", task)
    own = codec_of(teacher, device)
    if own.decoder_only != codec.decoder_only:
        kinds = [("decoder-only" if one.decoder_only else "an encoder-decoder") for one in (codec, own)]
        raise ModelError(
            f"{student.named} is {kinds[0]} and {teacher.named} is {kinds[1]}, which read prompts and completions as "
            "different ids: set teacher.path to a model of the student's kind."
        )
    check_same_vocabulary(codec.tokenizer, own.tokenizer, (student.named, teacher.named))
    check_same_ends(codec.eos_ids, own.eos_ids)
    codec.eos_ids = own.eos_ids = tuple(dict.fromkeys((*codec.eos_ids, *own.eos_ids)))
    probe = [Example("a", "a", {})]
    same = codec.chat is own.chat is None or torch.equal(codec.prompts(probe).ids_PS, own.prompts(probe).ids_PS)
    return ResolvedModels(student, teacher, codec, None if same else own)


def resolve_checkpoint(model: ModelConfig, key: str, task: Task) -> Checkpoint:
    """A model of the run as far as its settings, its files and the task determine it; no weights are read.

    Raises:
        ModelError: there is no configuration or no tokenizer, or a chat template is asked for and there is none.
        ConfigError: neither path nor architecture is set.
    """
    if model.path is None and model.architecture is None:
        raise ConfigError([f"{key}.path=null and {key}.architecture=null: set one."])
    place, tokenizer = place_of(model, key), _tokenizer(model, key, task)
    new = place is None
    configuration = new_configuration(model.architecture or {}, tokenizer, key) if new else read_config(place)
    resolved = Checkpoint(
        key=key,
        place=place,
        architecture=model.architecture if new else None,
        configuration=configuration,
        tokenizer=tokenizer,
        eos_ids=() if new else end_ids(place),
        chat=model.chat,
        max_prompt_tokens=task.max_prompt_tokens,
        max_completion_tokens=task.max_completion_tokens,
        dtype=getattr(torch, model.dtype.value),
        seed=model.seed,
    )
    if model.chat and not resolved.decoder_only:
        raise ModelError(
            f"{key}.chat=true: {resolved.named} is an encoder-decoder, which has no turns of a chat. "
            f"Set {key}.chat=false."
        )
    return resolved


def place_of(model: ModelConfig, key: str) -> Place | None:
    """Where the files of a model are; None for one with random weights.

    Raises:
        ModelError: the folder is missing.
    """
    return None if model.path is None else locate(model.path, model.revision, f"{key}.path", _load_options(model))


def codec_of(checkpoint: Checkpoint, device: torch.device) -> TextCodec:
    """Text <-> ids of a model: its tokenizer, end tokens and chat template, with the task's length limits.

    Raises:
        ModelError: the chat template cannot render a prompt and its answer.
    """
    chat = ChatTemplate(checkpoint.tokenizer, f"{checkpoint.key}.chat") if checkpoint.chat else None
    return TextCodec(
        checkpoint.tokenizer,
        checkpoint.max_prompt_tokens,
        checkpoint.max_completion_tokens,
        device,
        decoder_only=checkpoint.decoder_only,
        eos_ids=checkpoint.eos_ids,
        chat=chat,
    )


def has_weights(settings: TeacherConfig | None) -> bool:
    """The teacher is a model of its own that is loaded or trained here."""
    return settings is not None and (settings.path is not None or settings.architecture is not None)


def _tokenizer(model: ModelConfig, key: str, task: Task) -> PreTrainedTokenizerBase:
    """The tokenizer named by the model, its checkpoint's own, or the one that comes with the data.

    Raises:
        ModelError: there is none.
    """
    if model.tokenizer is not None:
        options = replace(_load_options(model), gguf_file=None)
        return load_tokenizer(locate(model.tokenizer, model.revision, f"{key}.tokenizer", options))
    place = place_of(model, key)
    tokenizer = task.tokenizer() if place is None else load_tokenizer(place)
    if tokenizer is None:
        raise ModelError(
            f"{key}.tokenizer=null: {key}.architecture with your own data needs one; set {key}.tokenizer to a folder "
            "or Hub id."
        )
    return tokenizer


def _load_options(model: ModelConfig) -> LoadOptions:
    """How the model's files are read."""
    return LoadOptions(
        model.gguf_file, model.trust_remote_code, model.use_safetensors, model.keep_layers, model.dropout
    )


def build_critic(config: Config, student: HiddenStateModel) -> Critic | None:
    """The value head, with the weights that lie beside the student's checkpoint if there are any."""
    value = config.policy_gradient.value
    if value is None:
        return None
    head = ValueHead(student.head().weight_VD.shape[1], value.hidden_size, config.seed)
    folder = None if config.student.path is None else Path(config.student.path).expanduser()
    if folder is not None and (folder / VALUE_HEAD_FILE).is_file():
        head.load(folder)
        log.info("policy_gradient.value: took the value head of %s", folder)
    return Critic(head.to(student.device), value.clip)


def token_divergence(config: DivergenceConfig) -> TokenDivergence:
    """The configured divergence."""
    parameter = None if config.name.parameter is None else getattr(config, config.name.parameter)
    return TokenDivergence(
        config.name, parameter, config.temperature, config.scale, config.teacher_top_k, config.teacher_temperature
    )


def attach_adapter(config: Config, model: PreTrainedModel, place: Place | None) -> AdaptedModel:
    """The student with the configured adapter, fresh.

    Args:
        config: of the run.
        model: the student's own weights.
        place: of its files; None for random weights.

    Raises:
        ModelError: the student has no such layers.
    """
    adapter, student = config.adapter, config.student
    if adapter is None:
        raise ConfigError(["adapter=null: there is nothing to attach."])
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if adapter.targets is None else adapter.targets,
        use_rslora=adapter.rslora,
        use_dora=adapter.kind is AdapterKind.dora,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        revision=student.revision,
    )
    changed = student.sft is not None or student.keep_layers is not None
    if place is None or changed or place.gguf or place.base is not None:
        return AdaptedModel(model, settings, student.seed, None)  # no checkpoint holds these weights as they are
    local = Path(place.path)
    return AdaptedModel(model, settings, student.seed, str(local.absolute()) if local.exists() else place.path)
