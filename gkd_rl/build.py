"""Configuration -> objects. The only place that reads config fields and the only `instantiate`."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_rl.architecture import HiddenStateModel
from gkd_rl.checkpoint import cache_key, folder_digest, rows_digest
from gkd_rl.config import (
    Baseline,
    Config,
    DivergenceConfig,
    DivergenceName,
    DivergenceReduction,
    ModelConfig,
    OptimizerConfig,
    SurrogateReduction,
)
from gkd_rl.divergence import TokenDivergence
from gkd_rl.errors import ConfigError, GkdRlError, ModelError
from gkd_rl.evaluation import EvaluationSettings, Evaluator
from gkd_rl.fused_head import FusedHead
from gkd_rl.loading import build_model, load_model, load_tokenizer
from gkd_rl.objective import Objective
from gkd_rl.optim import OptimizerSettings
from gkd_rl.prompt_stream import PromptStream
from gkd_rl.rollout import Sampler, Sampling, TextCodec
from gkd_rl.tasks.task import Task
from gkd_rl.trainer import StepSettings, Trainer
from gkd_rl.types import Example
from reward_models.composite import Composite

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The two models of a run, on the device, and how text reaches them."""

    student: HiddenStateModel
    teacher: HiddenStateModel | None
    codec: TextCodec


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
    return Composite(components, config.reward.weights) if components else None


def build_tokenizer(model: ModelConfig, task: Task, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer named by the model, its checkpoint's own, or the one that comes with the data.

    Raises:
        ModelError: there is none.
    """
    path = model.tokenizer or model.path
    if path is not None:
        return load_tokenizer(path, model.revision, f"{key}.tokenizer" if model.tokenizer else f"{key}.path")
    tokenizer = task.tokenizer()
    if tokenizer is None:
        raise ModelError(
            f"{key}.tokenizer=null: {key}.architecture with your own data needs one; set {key}.tokenizer to a folder "
            "or Hub id."
        )
    return tokenizer


def build_codec(tokenizer: PreTrainedTokenizerBase, task: Task, accelerator: Accelerator) -> TextCodec:
    """Text <-> ids with the task's length limits."""
    return TextCodec(tokenizer, task.max_prompt_tokens, task.max_completion_tokens, accelerator.device)


def fresh_model(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedModel:
    """The checkpoint, or a model with random weights."""
    dtype = getattr(torch, model.dtype.value)
    if model.path is not None:
        return load_model(model.path, model.revision, dtype, f"{key}.path")
    if model.architecture is None:
        raise ConfigError([f"{key}.path=null and {key}.architecture=null: set one."])
    return build_model(model.architecture, tokenizer, model.seed, dtype, key)


def supervised_cache(config: Config, model: ModelConfig, codec: TextCodec, train: list[Example]) -> Path:
    """Folder of the supervised model, named by the hash of everything that decides its weights."""
    key = cache_key(
        model=_plain(model),
        checkpoint=folder_digest(model.path),
        rows=rows_digest(train),
        limits=[codec.max_prompt_tokens, codec.max_completion_tokens],
        vocabulary=sorted(codec.tokenizer.get_vocab().items()),
        threads=torch.get_num_threads(),
    )
    return Path(config.cache_dir).expanduser() / "supervised" / key


def build_supervised_trainer(
    model: HiddenStateModel, settings: ModelConfig, codec: TextCodec, train: list[Example], accelerator: Accelerator
) -> Trainer:
    """Maximum likelihood on the references: lambda = 0 with cross-entropy, no teacher, no reward."""
    sft = settings.sft
    if sft is None:
        raise ConfigError(["sft=null: there is no supervised stage to build."])
    divergence = TokenDivergence(DivergenceName.cross_entropy)
    optimizer, schedule = _optimizer_settings(sft).build(model.parameters())
    return Trainer(
        accelerator=accelerator,
        student=model,
        teacher=None,
        objective=Objective(1.0, DivergenceReduction.token_mean, SurrogateReduction.sequence_sum),
        head=FusedHead(divergence, 1.0, sft.head_chunk_tokens, codec.vocabulary),
        sampler=Sampler(codec, Sampling()),
        codec=codec,
        reward=None,
        stream=PromptStream(train, sft.batch_size, settings.seed),
        optimizer=optimizer,
        schedule=schedule,
        settings=StepSettings(0.0, settings.seed, 1, sft.micro_batch_size, sft.max_grad_norm, Baseline.none),
    )


def build_trainer(
    config: Config, models: Models, reward: Composite | None, train: list[Example], accelerator: Accelerator
) -> Trainer:
    """The trainer of the run's own stage; what alpha does not use is not built."""
    divergence = token_divergence(config.divergence) if config.alpha > 0 else None
    taught = divergence is not None and divergence.needs_teacher
    optimizer, schedule = _optimizer_settings(config.trainer).build(models.student.parameters())
    rollout, trainer = config.rollout, config.trainer
    return Trainer(
        accelerator=accelerator,
        student=models.student,
        teacher=models.teacher if taught else None,
        objective=Objective(config.alpha, config.divergence.reduction, config.policy_gradient.reduction),
        head=FusedHead(divergence, rollout.temperature, trainer.head_chunk_tokens, models.codec.vocabulary),
        sampler=Sampler(models.codec, Sampling(rollout.temperature, rollout.top_p, rollout.top_k)),
        codec=models.codec,
        reward=reward if config.alpha < 1 else None,
        stream=PromptStream(train, trainer.prompts_per_step, config.seed),
        optimizer=optimizer,
        schedule=schedule,
        settings=StepSettings(
            lmbda=config.lmbda,
            seed=config.seed,
            per_prompt=rollout.per_prompt,
            micro_batch_size=trainer.micro_batch_size,
            max_grad_norm=trainer.max_grad_norm,
            baseline=config.policy_gradient.baseline,
        ),
    )


def build_evaluator(config: Config, models: Models, reward: Composite | None, examples: list[Example]) -> Evaluator:
    """The measurements of a run; the same random numbers for every model of the run."""
    configured = token_divergence(config.divergence)
    divergences = {
        "forward_kl": TokenDivergence(DivergenceName.forward_kl),
        "reverse_kl": TokenDivergence(DivergenceName.reverse_kl),
    }
    if configured.needs_teacher:
        divergences["divergence"] = configured
    evaluation, rollout = config.evaluation, config.rollout
    return Evaluator(
        examples=examples,
        codec=models.codec,
        sampling=Sampling(rollout.temperature, rollout.top_p, rollout.top_k),
        teacher=models.teacher,
        heads={
            name: FusedHead(divergence, rollout.temperature, config.trainer.head_chunk_tokens, models.codec.vocabulary)
            for name, divergence in divergences.items()
        },
        reward=reward,
        settings=EvaluationSettings(
            batch_size=evaluation.batch_size,
            rollout_prompts=evaluation.rollout_prompts,
            self_bleu_prompts=evaluation.self_bleu_prompts,
            self_bleu_samples=evaluation.self_bleu_samples,
            self_bleu_temperature=evaluation.self_bleu_temperature,
            bootstrap_samples=evaluation.bootstrap_samples,
            seed=config.seed,
        ),
    )


def token_divergence(config: DivergenceConfig) -> TokenDivergence:
    """The configured divergence."""
    return TokenDivergence(config.name, config.beta, config.temperature, config.scale)


def _optimizer_settings(config: OptimizerConfig) -> OptimizerSettings:
    return OptimizerSettings(
        steps=config.steps,
        name=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        decay=config.decay,
    )


def _plain(node: Any) -> Any:
    """A dataclass as JSON values."""
    return dataclasses.asdict(node, dict_factory=lambda items: {k: getattr(v, "value", v) for k, v in items})
