"""Typed schema of the configuration: types and ranges here, values in conf/ only.

Every field carries its allowed range or choices in its metadata, so that the check (`validation.py`), the message
(`setting_words.py`) and the command line's answer to a mistake (`precheck.py`) have one source. Nothing here imports
torch: a wrong setting is refused before anything slow starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from gkd_rl.choices import (
    AdapterKind,
    AlphaSchedule,
    Baseline,
    Decay,
    DivergenceName,
    DivergenceReduction,
    DivergenceScale,
    Dtype,
    FixedSource,
    KdCredit,
    KlEstimator,
    KlPlace,
    Metric,
    OnFailure,
    OptimizerName,
    Quantization,
    SurrogateReduction,
    TeacherPrompts,
    WandbMode,
)
from gkd_rl.rollout_config import RolloutConfig
from gkd_rl.safety_config import CheckpointConfig, GuardConfig
from gkd_rl.setting_fields import choice, number
from gkd_rl.sweep_config import SweepConfig


@dataclass
class OptimizerConfig:
    """How many optimiser steps, and how each of them is taken."""

    steps: int = number(1)
    train_rows: int | None = number(1)
    micro_batch_size: int | None = number(1)
    tokens_per_micro_batch: int | None = number(1)
    optimizer: OptimizerName = MISSING
    learning_rate: float = number(0, open_low=True)
    weight_decay: float = number(0)
    warmup_steps: int = number(0)
    decay: Decay = MISSING
    cooldown_steps: int = number(0)
    max_grad_norm: float = number(0, open_low=True)
    head_chunk_tokens: int | None = number(1)
    gradient_checkpointing: bool = MISSING


@dataclass
class SftConfig(OptimizerConfig):
    """Supervised fine-tuning on the task's references, the first stage of a model that is built from a config."""

    batch_size: int = number(1)


@dataclass
class ModelConfig:
    """A checkpoint (`path`) or a fresh model (`architecture`), and the supervised stage that comes first."""

    path: str | None = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    trust_remote_code: bool = MISSING
    use_safetensors: bool = MISSING
    keep_layers: list[int] | None = MISSING
    architecture: dict[str, Any] | None = MISSING
    tokenizer: str | None = MISSING
    chat: bool = MISSING
    dtype: Dtype = MISSING
    dropout: float | None = number(0, 1, open_high=True)
    seed: int = number(0)
    sft: SftConfig | None = MISSING


@dataclass
class AdapterConfig:
    """Low-rank adapters of the student; its own weights then stay as they are."""

    kind: AdapterKind = MISSING
    rank: int = number(1)
    lora_alpha: float = number(0, open_low=True)
    dropout: float = number(0, 1, open_high=True)
    targets: list[str] | None = MISSING
    rslora: bool = MISSING


@dataclass
class EndpointConfig:
    """A teacher behind an OpenAI-compatible server that gives the log-probabilities of a prompt's tokens (vLLM)."""

    url: str = MISSING
    model: str = MISSING
    top_k: int = number(1)
    api_key_variable: str | None = MISSING
    timeout: float = number(0, open_low=True)
    parallel: int = number(1)


@dataclass
class TeacherConfig(ModelConfig):
    """The model that is imitated: a model of its own, one behind an endpoint, or the student before training."""

    initial_student: bool = MISSING
    prompts: TeacherPrompts = MISSING
    quantization: Quantization = MISSING
    device: str | None = MISSING
    offload: bool = MISSING
    audit_prompts: int = number(0)
    output_cache_gib: float | None = number(0, open_low=True)
    endpoint: EndpointConfig | None = MISSING


@dataclass
class DivergenceConfig:
    """The distillation term."""

    name: DivergenceName = MISSING
    beta: float | None = number(0, 1, open_low=True, open_high=True)
    skew: float | None = number(0, 1, open_low=True, open_high=True)
    temperature: float = number(0, open_low=True)
    teacher_temperature: float = number(0, open_low=True)
    scale: DivergenceScale = MISSING
    reduction: DivergenceReduction = MISSING
    teacher_top_k: int | None = number(1)
    kd_credit: KdCredit = MISSING


@dataclass
class SampledKlConfig:
    """Regularisation to the initial student, estimated from the sampled tokens."""

    coefficient: float = number(0)
    estimator: KlEstimator = MISSING
    place: KlPlace = MISSING


@dataclass
class ValueConfig:
    """The learned baseline: a value head on the student's hidden states, and generalised advantage estimation."""

    hidden_size: int = number(1)
    learning_rate: float = number(0, open_low=True)
    discount: float = number(0, 1)
    gae_lambda: float = number(0, 1)
    bootstrap: bool = MISSING
    clip: float | None = number(0, open_low=True)


@dataclass
class PolicyGradientConfig:
    """The reward term."""

    baseline: Baseline = MISSING
    divide_by_std: bool = MISSING
    whiten: bool = MISSING
    reduction: SurrogateReduction = MISSING
    clip_low: float | None = number(0, 1, open_low=True)
    clip_high: float | None = number(0, open_low=True)
    epochs: int = number(1)
    fixed_advantage: float | None = number()
    sampled_kl: SampledKlConfig = field(default_factory=SampledKlConfig)
    value: ValueConfig | None = MISSING


@dataclass
class AlphaScheduleConfig:
    """alpha over the run: from `start` to the dial."""

    kind: AlphaSchedule = MISSING
    start: float | None = number(0, 1)
    until: float | None = number(0, 1, open_low=True, open_high=True)


@dataclass
class FixedDataConfig:
    """The text of the steps that are not on student rollouts."""

    source: FixedSource = MISSING
    temperature: float = number(0)
    seed: int = number(0)


@dataclass
class RewardConfig:
    """Weighted sum of named components; each component is a `_target_` with its arguments."""

    components: dict[str, Any] = MISSING
    weights: dict[str, float] = MISSING
    judge: str | None = MISSING
    batch_size: int | None = number(1)
    cache_size: int = number(0)
    timeout: float | None = number(0, open_low=True)
    on_failure: OnFailure = MISSING
    failure_value: float = number()


@dataclass
class TrainerConfig(OptimizerConfig):
    """The stage on student rollouts."""

    prompts_per_step: int = number(1)
    log_every: int = number(1)
    samples_per_log: int = number(0)
    compile_head: bool = MISSING
    diagnose_every: int = number(0)
    checkpoint_every: int = number(0)
    profile: bool = MISSING


@dataclass
class EvaluationConfig:
    """What is decoded after training, and the uncertainty that is stated with it."""

    split: str = choice("train", "validation", "test")
    metrics: list[Metric] = MISSING
    beams: int = number(1)
    length_penalty: float = number()
    batch_size: int = number(1)
    rollout_prompts: int = number(1)
    self_bleu_prompts: int = number(0)
    self_bleu_samples: int = number(2)
    self_bleu_temperature: float = number(0, open_low=True)
    temperatures: list[float] = number(0, open_low=True)  # noqa: RUF009 (it is MISSING)
    bootstrap_samples: int = number(100)


@dataclass
class TrackingConfig:
    """Where numbers go besides metrics.jsonl."""

    wandb: WandbMode = MISSING
    project: str = MISSING
    group: str | None = MISSING
    job_type: str = MISSING
    tags: list[str] = MISSING


@dataclass
class ScaleConfig:
    """What the numbers of this run can be compared with, and what its models and stages have in common."""

    name: str = MISSING
    notice: str = MISSING
    threads: int = number(0)
    memory_gib: float | None = number(0, open_low=True)
    sequences_per_step: int = number(1)
    sft: SftConfig = field(default_factory=SftConfig)
    size: str | None = MISSING
    sizes: dict[str, Any] = MISSING


@dataclass
class Config:
    """One run. The first three are the dials of the paper."""

    alpha: float = number(0, 1)
    lmbda: float = number(0, 1)
    seed: int = number(0)
    name: str = MISSING
    cache_dir: str = MISSING
    save_model: bool = MISSING
    resume: str | None = MISSING
    trusted_packages: list[str] = MISSING
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    task: dict[str, Any] = MISSING
    student: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig | None = MISSING
    teacher: TeacherConfig | None = field(default_factory=TeacherConfig)
    fixed_data: FixedDataConfig = field(default_factory=FixedDataConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    alpha_schedule: AlphaScheduleConfig = field(default_factory=AlphaScheduleConfig)
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
