"""Configuration -> objects. The only place that reads config fields and the only `instantiate`.

Configuration -> the student's adapter.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_rl.config import AdapterConfig, Config, DivergenceConfig, ModelConfig, TeacherConfig
from gkd_rl.config.choices import AdapterKind
from gkd_rl.config.launch import processes
from gkd_rl.data.task import Task
from gkd_rl.errors import ConfigError, GkdRlError, ModelError
from gkd_rl.generation.codec import ChatTemplate, TextCodec
from gkd_rl.generation.vllm import Server
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.models.adapter import AdaptedModel
from gkd_rl.models.architecture import HiddenStateModel
from gkd_rl.models.checkpoint import LoadOptions, base_of, end_ids
from gkd_rl.models.loading import (
    build_model,
    cache_key,
    check_same_ends,
    check_same_vocabulary,
    folder_digest,
    is_decoder_only,
    load_model,
    load_tokenizer,
    rows_digest,
)
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
        samples: the teacher's completion of every training prompt, where steps read them.
        endpoint: the server of a teacher that is behind one.
        outputs: what the teacher said of fixed text, where it is kept.
        server: writes the rollouts, where the student does not.
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


def build_tokenizer(model: ModelConfig, task: Task, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer named by the model, its checkpoint's own, or the one that comes with the data.

    Raises:
        ModelError: there is none.
    """
    path = model.tokenizer or model.path
    if path is not None:
        named = f"{key}.tokenizer" if model.tokenizer else f"{key}.path"
        options = load_options(model)
        return load_tokenizer(
            path, model.revision, named, replace(options, gguf_file=None) if model.tokenizer else options
        )
    tokenizer = task.tokenizer()
    if tokenizer is None:
        raise ModelError(
            f"{key}.tokenizer=null: {key}.architecture with your own data needs one; set {key}.tokenizer to a folder "
            "or Hub id."
        )
    return tokenizer


def load_options(model: ModelConfig) -> LoadOptions:
    """How the model's checkpoint is read."""
    return LoadOptions(
        model.gguf_file, model.trust_remote_code, model.use_safetensors, model.keep_layers, model.dropout
    )


def build_codec(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, task: Task, device: torch.device, key: str = "student"
) -> TextCodec:
    """Text <-> ids for a model's kind, its ends and its chat template, with the task's length limits; loads no weights.

    Raises:
        ModelError: no chat template where one is asked for, or no configuration.
    """
    options = load_options(model)
    decoder_only = is_decoder_only(model.path, model.revision, model.architecture, key, options)
    if model.chat and not decoder_only:
        raise ModelError(
            f"{key}.chat=true: {_named(model, key)} is an encoder-decoder, which has no turns of a chat. "
            f"Set {key}.chat=false."
        )
    chat = ChatTemplate(tokenizer, f"{key}.chat") if model.chat else None
    ends = () if model.path is None else end_ids(model.path, model.revision, f"{key}.path", options)
    limits = task.max_prompt_tokens, task.max_completion_tokens
    return TextCodec(tokenizer, *limits, device, decoder_only=decoder_only, eos_ids=ends, chat=chat)


def build_codecs(
    config: Config, teacher: TeacherConfig | None, task: Task, device: torch.device
) -> tuple[TextCodec, TextCodec | None]:
    """The run's codec, which is the student's, and one of the teacher's own where it renders prompts otherwise.

    What ends a text of either model ends every text of the run.

    Args:
        config: the run.
        teacher: its teacher, if it is a model of its own.
        task: the data.
        device: of the ids.

    Raises:
        ModelError: the two do not mean the same by the same ids.
    """
    codec = build_codec(config.student, build_tokenizer(config.student, task, "student"), task, device)
    if teacher is None:
        return codec, None
    own = build_codec(teacher, build_tokenizer(teacher, task, "teacher"), task, device, "teacher")
    names = _named(config.student, "student"), _named(teacher, "teacher")
    if own.decoder_only != codec.decoder_only:
        kinds = [("decoder-only" if one.decoder_only else "an encoder-decoder") for one in (codec, own)]
        raise ModelError(
            f"{names[0]} is {kinds[0]} and {names[1]} is {kinds[1]}, which read prompts and completions as different "
            "ids: set teacher.path to a model of the student's kind."
        )
    check_same_vocabulary(codec.tokenizer, own.tokenizer, names)
    check_same_ends(codec.eos_ids, own.eos_ids)
    codec.eos_ids = own.eos_ids = tuple(dict.fromkeys((*codec.eos_ids, *own.eos_ids)))
    probe = [Example("a", "a", {})]
    same = codec.chat is own.chat is None or torch.equal(codec.prompts(probe).ids_PS, own.prompts(probe).ids_PS)
    return codec, None if same else own


def _named(model: ModelConfig, key: str) -> str:
    """Where a model comes from, as it was typed."""
    return f"{key}.architecture" if model.path is None else f"{key}.path={model.path}"


def fresh_model(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedModel:
    """The checkpoint, or a model with random weights."""
    dtype = getattr(torch, model.dtype.value)
    if model.path is not None:
        return load_model(model.path, model.revision, dtype, f"{key}.path", load_options(model))
    if model.architecture is None:
        raise ConfigError([f"{key}.path=null and {key}.architecture=null: set one."])
    return build_model(model.architecture, tokenizer, model.seed, dtype, key)


def model_key(model: ModelConfig, codec: TextCodec, train: list[Example], adapter: AdapterConfig | None = None) -> str:
    """Hash of everything that decides a model's weights before the run's own stage."""
    return cache_key(
        model=_plain(model),
        adapter=None if adapter is None else _values(adapter),
        checkpoint=folder_digest(model.path),
        rows=rows_digest(train if model.sft is None else train[: model.sft.train_rows]),
        limits=[codec.max_prompt_tokens, codec.max_completion_tokens],
        vocabulary=sorted(codec.tokenizer.get_vocab().items()),
        end=codec.eos_ids[0],
        template=None if codec.chat is None else codec.tokenizer.chat_template,
        threads=torch.get_num_threads(),
        processes=processes(),
    )


def supervised_cache(config: Config, key: str) -> Path:
    """Folder of a supervised model, by its key."""
    return Path(config.cache_dir).expanduser() / "supervised" / key


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


def samples_cache(config: Config, teacher_key: str, codec: TextCodec, train: list[Example]) -> Path:
    """Folder of the teacher's samples, named by the hash of everything that decides them."""
    key = cache_key(
        teacher=teacher_key,
        quantization=None if config.teacher is None else config.teacher.quantization.value,
        rows=rows_digest(train),
        limits=[codec.max_prompt_tokens, codec.max_completion_tokens],
        ends=codec.eos_ids,
        temperature=config.fixed_data.temperature,
        seed=config.fixed_data.seed,
        threads=torch.get_num_threads(),
    )
    return Path(config.cache_dir).expanduser() / "teacher_samples" / key


def token_divergence(config: DivergenceConfig) -> TokenDivergence:
    """The configured divergence."""
    parameter = None if config.name.parameter is None else getattr(config, config.name.parameter)
    return TokenDivergence(
        config.name, parameter, config.temperature, config.scale, config.teacher_top_k, config.teacher_temperature
    )


def _plain(model: ModelConfig) -> dict[str, Any]:
    """What decides a model's weights, as JSON values; what a teacher is used for does not."""
    values = _values(model)
    return {item.name: values[item.name] for item in dataclasses.fields(ModelConfig)}


def _values(settings: ModelConfig | AdapterConfig) -> dict[str, Any]:
    """All settings as JSON values."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k: getattr(v, "value", v) for k, v in items})


def attach_adapter(config: Config, model: PreTrainedModel) -> AdaptedModel:
    """The student with the configured adapter, fresh.

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
    changed = (student.sft, student.keep_layers, student.gguf_file)
    path = student.path if all(one is None for one in changed) else None
    if path is not None and base_of(path, "student.path") is not None:
        path = None
    if path is not None and Path(path).expanduser().exists():
        path = str(Path(path).expanduser().absolute())
    return AdaptedModel(model, settings, student.seed, None if path is None or path.endswith(".gguf") else path)
