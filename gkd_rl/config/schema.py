"""Typed schema of a sweep's own settings.

Typed schema of what keeps a run safe: checkpoints, and the numbers that are watched.

Typed schema of the configuration: types and ranges here, values in conf/ only.

Every field carries its allowed range or choices in its metadata, so that the check (`config/validation.py`), the message
(`config/validation.py`) and the command line's answer to a mistake (`cli/command_line.py`) have one source. Nothing here imports
torch: a wrong setting is refused before anything slow starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from gkd_rl.config.choices import (
    AlphaSchedule,
    Baseline,
    DivergenceName,
    DivergenceReduction,
    DivergenceScale,
    FixedSource,
    KdCredit,
    KlEstimator,
    KlPlace,
    Metric,
    OnFailure,
    SurrogateReduction,
    WandbMode,
    choice,
    number,
)
from gkd_rl.config.model_schema import (
    AdapterConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TeacherConfig,
)


@dataclass
class SweepConfig:
    """What a sweep is told of each run, and the folder of a broken sweep that is to be finished."""

    objectives: list[str] = MISSING
    resume: str | None = MISSING


@dataclass
class CheckpointConfig:
    """Which checkpoints of the run's own stage stay on disk; `trainer.checkpoint_every` says how often one is made."""

    keep: int = number(1)
    best: str | None = MISSING
    best_is: str = choice("highest", "lowest")


@dataclass
class GuardConfig:
    """Numbers that go wrong. All but the first are limits of warnings, null for none."""

    max_skipped: int = number(1)
    negative_divergence: float | None = number(0)
    ratio: float | None = number(0, open_low=True)
    entropy_share: float | None = number(0, 1, open_low=True)
    length_growth: float | None = number(1, open_low=True)
    baseline_steps: int = number(1)


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
