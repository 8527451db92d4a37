"""Configuration -> the sampler, the evaluator, and the trainers of the supervised stage and of the run's own stage."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator

from gkd_rl.config import Config, ModelConfig, OptimizerConfig, PolicyGradientConfig
from gkd_rl.config.alpha_schedule import Schedule
from gkd_rl.config.choices import (
    AlphaSchedule,
    DivergenceName,
    DivergenceReduction,
    KdCredit,
    KlPlace,
    RolloutEngine,
    SurrogateReduction,
    TeacherPrompts,
)
from gkd_rl.config.model_schema import RolloutConfig
from gkd_rl.config.rules import alpha_schedule
from gkd_rl.data.prompt_order import PromptStream
from gkd_rl.errors import ConfigError, ModelError
from gkd_rl.evaluation.evaluator import EvaluationSettings, Evaluator
from gkd_rl.generation.codec import TextCodec
from gkd_rl.generation.sampler import Beams, Sampler, Sampling
from gkd_rl.generation.static_decoding import StaticDecoding, check_type, compiler_for
from gkd_rl.generation.vllm import Server, VllmSampler, connect
from gkd_rl.losses.divergences import TokenDivergence
from gkd_rl.losses.fused_head import FusedHead
from gkd_rl.losses.objective import Objective
from gkd_rl.losses.policy_gradient import CreditSettings
from gkd_rl.models.architecture import ENCODER_DECODERS, HiddenStateModel
from gkd_rl.models.row_layout import can_share
from gkd_rl.pipeline.build import Models, token_divergence
from gkd_rl.training.cost import CostMeter, ModelCost
from gkd_rl.training.micro_batches import MicroBatcher
from gkd_rl.training.optimization import OptimizerSettings
from gkd_rl.training.step_metrics import Guard, GuardLimits
from gkd_rl.training.step_models import StepModels
from gkd_rl.training.trainer import StepSettings, Trainer
from gkd_rl.types import Example, Source
from reward_models.composite import Composite


def check_generation(rollout: RolloutConfig, model_type: str) -> None:
    """Refuse a student that cannot generate as configured.

    Args:
        rollout: the engine and its cache.
        model_type: of the student's configuration.

    Raises:
        ModelError: it cannot.
    """
    if rollout.engine is RolloutEngine.vllm and model_type in ENCODER_DECODERS:
        raise ModelError(
            f"rollout.engine=vllm with a student of model_type={model_type}: the server generates for decoder-only "
            "students. Set rollout.engine=transformers, or choose another student."
        )
    if rollout.static_cache:
        check_type(model_type)


def build_server(rollout: RolloutConfig, model_type: str, device: torch.device) -> Server | None:
    """The server that generates rollouts, connected before weights are loaded; None where the student generates them.

    Args:
        rollout: the engine and its address.
        model_type: of the student's configuration.
        device: of the student.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: the student cannot generate in this way.
        EndpointError: the server cannot be reached, or takes no weights.
    """
    check_generation(rollout, model_type)
    settings = rollout.vllm
    if rollout.engine is not RolloutEngine.vllm:
        return None
    return connect(settings.url, settings.group_port, settings.wait, device)


def build_sampler(rollout: RolloutConfig, models: Models) -> Sampler:
    """What takes the run's completions from the student."""
    codec, sampling = models.codec, Sampling(rollout.temperature, rollout.top_p, rollout.top_k)
    if models.server is not None:
        return VllmSampler(codec, sampling, models.server, rollout.vllm.url)
    if not rollout.static_cache:
        return Sampler(codec, sampling)
    limits = codec.max_prompt_tokens, codec.max_completion_tokens
    return Sampler(codec, sampling, StaticDecoding(*limits, compiler_for(codec.device)))


def build_evaluator(config: Config, models: Models, reward: Composite | None, examples: list[Example]) -> Evaluator:
    """The measurements of a run; the same random numbers for every model of the run."""
    configured = token_divergence(config.divergence)
    reverse_kl = TokenDivergence(DivergenceName.reverse_kl)
    divergences = {"forward_kl": TokenDivergence(DivergenceName.forward_kl), "reverse_kl": reverse_kl}
    if configured.needs_teacher:
        divergences["divergence"] = configured
    evaluation, rollout = config.evaluation, config.rollout

    def head(divergence: TokenDivergence) -> FusedHead:
        return FusedHead(divergence, rollout.temperature, config.trainer.head_chunk_tokens, models.codec.vocabulary)

    return Evaluator(
        examples=examples,
        codec=models.codec,
        sampling=Sampling(rollout.temperature, rollout.top_p, rollout.top_k),
        teacher=models.teacher or models.endpoint,
        heads={name: head(divergence) for name, divergence in divergences.items()},
        initial=models.initial,
        initial_head=head(reverse_kl),
        reward=reward,
        settings=EvaluationSettings(
            metrics=tuple(evaluation.metrics),
            beams=Beams(evaluation.beams, evaluation.length_penalty) if evaluation.beams > 1 else None,
            judge=config.reward.judge,
            batch_size=evaluation.batch_size,
            rollout_prompts=evaluation.rollout_prompts,
            self_bleu_prompts=evaluation.self_bleu_prompts,
            self_bleu_samples=evaluation.self_bleu_samples,
            self_bleu_temperature=evaluation.self_bleu_temperature,
            temperatures=tuple(evaluation.temperatures),
            bootstrap_samples=evaluation.bootstrap_samples,
            seed=config.seed,
        ),
    )


log = logging.getLogger(__name__)


def build_supervised_trainer(
    model: HiddenStateModel,
    settings: ModelConfig,
    codec: TextCodec,
    train: list[Example],
    accelerator: Accelerator,
    max_skipped: int | None = None,
) -> Trainer:
    """Maximum likelihood on the references: lambda = 0 with cross-entropy, no teacher, no reward.

    It stops after `max_skipped` steps in a row without a finite loss and gradient.
    """
    sft = settings.sft
    if sft is None:
        raise ConfigError(["sft=null: there is no supervised stage to build."])
    divergence = TokenDivergence(DivergenceName.cross_entropy)
    optimizer, schedule = _optimizer_settings(sft).build(model.parameters())
    return Trainer(
        accelerator=accelerator,
        models=StepModels(model, None, None, FusedHead(divergence, 1.0, sft.head_chunk_tokens, codec.vocabulary)),
        objective=Objective(DivergenceReduction.token_mean, SurrogateReduction.sequence_sum),
        alpha=Schedule(AlphaSchedule.constant, 1.0, sft.steps),
        credit=CreditSettings(per_prompt=1),
        critic=None,
        sampler=Sampler(codec, Sampling()),
        codec=codec,
        reward=None,
        stream=PromptStream(train[: sft.train_rows], sft.batch_size, settings.seed),
        teacher_samples=None,
        micro_batcher=_micro_batcher(sft, model),
        optimizer=optimizer,
        schedule=schedule,
        settings=StepSettings(
            lmbda=0.0,
            seed=settings.seed,
            per_prompt=1,
            max_grad_norm=sft.max_grad_norm,
            gradient_checkpointing=sft.gradient_checkpointing,
        ),
        guard=Guard(GuardLimits(max_skipped=max_skipped)),
    )


def build_trainer(
    config: Config, models: Models, reward: Composite | None, stream: PromptStream, accelerator: Accelerator
) -> Trainer:
    """The trainer of the run's own stage; what alpha never uses is not built."""
    alpha, critic = alpha_schedule(config), models.critic
    divergence = token_divergence(config.divergence) if alpha.has_divergence else None
    value = config.policy_gradient.value
    extra = [] if critic is None or value is None else [(critic.head.parameters(), value.learning_rate)]
    optimizer, schedule = _optimizer_settings(config.trainer).build(models.student.parameters(), extra)
    rollout, trainer, surrogate = config.rollout, config.trainer, config.policy_gradient
    _name_unshared(models, rollout.per_prompt)
    return Trainer(
        accelerator=accelerator,
        models=_readers(config, models, divergence),
        objective=Objective(
            divergence_reduction=config.divergence.reduction,
            surrogate_reduction=surrogate.reduction,
            clip=_clip(surrogate),
            kl_coefficient=surrogate.sampled_kl.coefficient if surrogate.sampled_kl.place is KlPlace.loss else 0.0,
        ),
        alpha=alpha,
        credit=_credit(config),
        critic=critic if alpha.has_reward else None,
        sampler=build_sampler(rollout, models),
        codec=models.codec,
        reward=reward if alpha.has_reward else None,
        stream=stream,
        teacher_samples=models.samples,
        micro_batcher=_micro_batcher(trainer, models.student),
        optimizer=optimizer,
        schedule=schedule,
        settings=StepSettings(
            lmbda=config.lmbda,
            fixed_source=Source(config.fixed_data.source.value),
            seed=config.seed,
            per_prompt=rollout.per_prompt,
            max_grad_norm=trainer.max_grad_norm,
            epochs=surrogate.epochs,
            diagnose_every=trainer.diagnose_every,
            gradient_checkpointing=trainer.gradient_checkpointing,
        ),
        guard=Guard(_limits(config)),
    )


def _limits(config: Config) -> GuardLimits:
    """Of the numbers that are watched."""
    settings = config.guard
    return GuardLimits(
        max_skipped=settings.max_skipped,
        negative_divergence=settings.negative_divergence,
        ratio=settings.ratio,
        entropy_share=settings.entropy_share,
        length_growth=settings.length_growth,
        baseline_steps=settings.baseline_steps,
    )


def _readers(config: Config, models: Models, divergence: TokenDivergence | None) -> StepModels:
    """The student, the model that it imitates, and the student before training."""
    imitated = models.initial if config.teacher is not None and config.teacher.initial_student else models.teacher
    taught = divergence is not None and divergence.needs_teacher
    vocabulary = models.codec.vocabulary
    return StepModels(
        student=models.student,
        teacher=imitated if taught else None,
        initial=models.initial,
        head=FusedHead(
            divergence,
            config.rollout.temperature,
            config.trainer.head_chunk_tokens,
            vocabulary,
            compiled=config.trainer.compile_head and models.student.device.type == "cuda",
        ),
        shuffled_prompts=config.teacher is not None and config.teacher.prompts is TeacherPrompts.shuffled,
        kd_credit=config.divergence.kd_credit is not KdCredit.none,
        sampled_kl=config.policy_gradient.sampled_kl.coefficient > 0,
        remote_teacher=models.endpoint if taught else None,
        cost_meter=CostMeter(synchronise=config.trainer.profile),
        output_cache=models.outputs,
    )


def _name_unshared(models: Models, per_prompt: int) -> None:
    """Log which model computes a prompt again for each completion, because it takes no mask of a shared row."""
    for name, one in (("student", models.student), ("teacher", models.teacher)):
        if per_prompt > 1 and one is not None and not can_share(one.model):
            kind = f"{one.model.config.model_type} with {one.model.config._attn_implementation} attention"
            log.info("%s: %s computes a prompt again for each of its %d completions", name, kind, per_prompt)


def _credit(config: Config) -> CreditSettings:
    """Advantages and credits as configured."""
    settings, value = config.policy_gradient, config.policy_gradient.value
    return CreditSettings(
        per_prompt=config.rollout.per_prompt,
        baseline=settings.baseline,
        divide_by_std=settings.divide_by_std,
        whiten=settings.whiten,
        fixed_advantage=settings.fixed_advantage,
        kl_in_reward=settings.sampled_kl.coefficient if settings.sampled_kl.place is KlPlace.reward else 0.0,
        kd_credit=config.divergence.kd_credit,
        divergence_reduction=config.divergence.reduction,
        discount=1.0 if value is None else value.discount,
        gae_lambda=1.0 if value is None else value.gae_lambda,
        bootstrap=value is None or value.bootstrap,
    )


def _clip(settings: PolicyGradientConfig) -> tuple[float, float] | None:
    """The two ends of PPO's clip, None without one."""
    low, high = settings.clip_low, settings.clip_high
    return None if low is None or high is None else (low, high)


def _micro_batcher(config: OptimizerConfig, model: HiddenStateModel) -> MicroBatcher:
    """Micro-batches as configured; what is left open is planned first, see `build_plan.with_micro_batches`."""
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    limits = (config.micro_batch_size, config.tokens_per_micro_batch)
    return MicroBatcher(ModelCost.of(model), model.device.type, trained, *limits)


def _optimizer_settings(config: OptimizerConfig) -> OptimizerSettings:
    return OptimizerSettings(
        steps=config.steps,
        name=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        decay=config.decay,
        cooldown_steps=config.cooldown_steps,
    )
