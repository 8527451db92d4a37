"""Typed schema of the configuration: types and ranges; the values are in conf/ only.

Every field carries its allowed range or choices in its metadata. `validation.py` uses them to check a value and to
describe what a setting takes, also for the command line's messages (`cli/command_line.py`). Nothing here imports torch,
so that a wrong setting is refused before a slow import.
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
class ScaleConfig:
    """Size of the run: defaults that its models and stages share, and a notice of what its numbers compare with."""

    name: str = MISSING
    notice: str = MISSING
    threads: int = number(0)
    memory_gib: float | None = number(0, open_low=True)
    sequences_per_step: int = number(1)
    sft: SftConfig = field(default_factory=SftConfig)
    size: str | None = MISSING
    sizes: dict[str, Any] = MISSING


@dataclass
class FixedDataConfig:
    """Completions of the steps that do not train on student rollouts."""

    source: FixedSource = MISSING
    temperature: float = number(0)
    seed: int = number(0)


@dataclass
class DivergenceConfig:
    """The divergence term E[D(p_T || p_S)]."""

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
class AlphaScheduleConfig:
    """alpha over the run: from `start` to the setting `alpha`."""

    kind: AlphaSchedule = MISSING
    start: float | None = number(0, 1)
    until: float | None = number(0, 1, open_low=True, open_high=True)


@dataclass
class SampledKlConfig:
    """KL(student || initial student), estimated from the sampled tokens, as a penalty."""

    coefficient: float = number(0)
    estimator: KlEstimator = MISSING
    place: KlPlace = MISSING


@dataclass
class ValueConfig:
    """The learned baseline (PPO): a value head on the student's hidden states, and generalised advantage estimation."""

    hidden_size: int = number(1)
    learning_rate: float = number(0, open_low=True)
    discount: float = number(0, 1)
    gae_lambda: float = number(0, 1)
    bootstrap: bool = MISSING
    clip: float | None = number(0, open_low=True)


@dataclass
class PolicyGradientConfig:
    """The policy gradient of the reward term E[r]."""

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
    """The student's training by Eq. 5 (Algorithm 1)."""

    prompts_per_step: int = number(1)
    log_every: int = number(1)
    samples_per_log: int = number(0)
    compile_head: bool = MISSING
    diagnose_every: int = number(0)
    checkpoint_every: int = number(0)
    profile: bool = MISSING


@dataclass
class EvaluationConfig:
    """Decoding and metrics before and after training, and the bootstrap of their intervals."""

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
    """W&B, beside metrics.jsonl."""

    wandb: WandbMode = MISSING
    project: str = MISSING
    group: str | None = MISSING
    job_type: str = MISSING
    tags: list[str] = MISSING


@dataclass
class CheckpointConfig:
    """Checkpoints of the student's training that are kept; `trainer.checkpoint_every` is the interval."""

    keep: int = number(1)
    best: str | None = MISSING
    best_is: str = choice("highest", "lowest")


@dataclass
class GuardConfig:
    """Limits of numerical checks in training: `max_skipped` stops the run, the others log a warning (null: never)."""

    max_skipped: int = number(1)
    negative_divergence: float | None = number(0)
    ratio: float | None = number(0, open_low=True)
    entropy_share: float | None = number(0, 1, open_low=True)
    length_growth: float | None = number(1, open_low=True)
    baseline_steps: int = number(1)


@dataclass
class SweepConfig:
    """Objectives that each run returns to the sweeper, and the folder of an interrupted sweep to resume."""

    objectives: list[str] = MISSING
    resume: str | None = MISSING


@dataclass
class Config:
    """One run. `alpha` and `lmbda` are those of the paper (Eq. 5 and Algorithm 1)."""

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
