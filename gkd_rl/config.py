"""Typed schema of the configuration: types and ranges here, values in conf/ only.

Every field carries its allowed range or choices in its metadata, so that the check (`validation.py`), the message and
the command line's answer to a mistake (`precheck.py`) have one source. Nothing here imports torch: a wrong setting is
refused before anything slow starts.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING


class DivergenceName(Enum):
    """D(p_T, p_S) per token; `cross_entropy` is the log-loss on given tokens (SFT, SeqKD) and needs no teacher."""

    forward_kl = "forward_kl"
    reverse_kl = "reverse_kl"
    jsd = "jsd"
    cross_entropy = "cross_entropy"


class DivergenceScale(Enum):
    """`raw` is the paper's formula; `unit` divides JSD(beta) by beta (1 - beta), so that one alpha means one thing."""

    raw = "raw"
    unit = "unit"


class DivergenceReduction(Enum):
    """From tokens to one number; `sequence_mean` is the paper's Eq. 2."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"
    sequence_sum = "sequence_sum"


class Baseline(Enum):
    """What is subtracted from the reward before it weighs the score function."""

    none = "none"
    batch_mean = "batch_mean"
    leave_one_out = "leave_one_out"


class SurrogateReduction(Enum):
    """`sequence_sum` gives the exact gradient of E[r]; `token_mean` divides by the generated tokens of the step."""

    sequence_sum = "sequence_sum"
    token_mean = "token_mean"


class OptimizerName(Enum):
    """Optimisers on offer; the paper uses Adafactor."""

    adamw = "adamw"
    adafactor = "adafactor"


class Decay(Enum):
    """Learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Dtype(Enum):
    """Number format of the weights in memory."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class WandbMode(Enum):
    """`offline` writes beside metrics.jsonl and asks for no account; `online` uploads; `disabled` writes nothing."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


def number(low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    """A required number between `low` and `high`; `open_*` excludes the end itself."""
    return field(default=MISSING, metadata={"range": (low, high, open_low, open_high)})


def choice(*choices: str) -> Any:
    """A required text that must be one of `choices`, for what is a name of its own in the data and not an Enum."""
    return field(default=MISSING, metadata={"choices": choices})


@dataclass
class OptimizerConfig:
    """How many optimiser steps, and how each of them is taken."""

    steps: int = number(1)
    micro_batch_size: int = number(1)
    optimizer: OptimizerName = MISSING
    learning_rate: float = number(0, open_low=True)
    weight_decay: float = number(0)
    warmup_steps: int = number(0)
    decay: Decay = MISSING
    max_grad_norm: float = number(0, open_low=True)
    head_chunk_tokens: int = number(1)


@dataclass
class SftConfig(OptimizerConfig):
    """Supervised fine-tuning on the task's references, the first stage of a model that is built from a config."""

    batch_size: int = number(1)


@dataclass
class ModelConfig:
    """A checkpoint (`path`) or a fresh model (`architecture`), and the supervised stage that comes first."""

    path: str | None = MISSING
    revision: str | None = MISSING
    architecture: dict[str, Any] | None = MISSING
    tokenizer: str | None = MISSING
    dtype: Dtype = MISSING
    seed: int = number(0)
    sft: SftConfig | None = MISSING


@dataclass
class DivergenceConfig:
    """The distillation term."""

    name: DivergenceName = MISSING
    beta: float | None = field(default=MISSING, metadata={"range": (0, 1, True, True)})
    temperature: float = number(0, open_low=True)
    scale: DivergenceScale = MISSING
    reduction: DivergenceReduction = MISSING


@dataclass
class PolicyGradientConfig:
    """The reward term."""

    baseline: Baseline = MISSING
    reduction: SurrogateReduction = MISSING


@dataclass
class RewardConfig:
    """Weighted sum of named components; each component is a `_target_` with its arguments."""

    components: dict[str, Any] = MISSING
    weights: dict[str, float] = MISSING


@dataclass
class RolloutConfig:
    """How the student is sampled."""

    per_prompt: int = number(1)
    temperature: float = number(0, open_low=True)
    top_p: float = number(0, 1, open_low=True)
    top_k: int = number(0)


@dataclass
class TrainerConfig(OptimizerConfig):
    """The stage on student rollouts."""

    prompts_per_step: int = number(1)
    log_every: int = number(1)
    samples_per_log: int = number(0)


@dataclass
class EvaluationConfig:
    """What is decoded after training, and the uncertainty that is stated with it."""

    split: str = choice("train", "validation", "test")
    batch_size: int = number(1)
    rollout_prompts: int = number(1)
    self_bleu_prompts: int = number(0)
    self_bleu_samples: int = number(2)
    self_bleu_temperature: float = number(0, open_low=True)
    bootstrap_samples: int = number(100)


@dataclass
class TrackingConfig:
    """Where numbers go besides metrics.jsonl."""

    wandb: WandbMode = MISSING
    project: str = MISSING
    group: str | None = MISSING


@dataclass
class ScaleConfig:
    """What the numbers of this run can be compared with."""

    name: str = MISSING
    notice: str = MISSING
    threads: int = number(0)


@dataclass
class Config:
    """One run. The first three are the dials of the paper."""

    alpha: float = number(0, 1)
    lmbda: float = number(0, 1)
    seed: int = number(0)
    name: str = MISSING
    cache_dir: str = MISSING
    save_model: bool = MISSING
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    task: dict[str, Any] = MISSING
    student: ModelConfig = field(default_factory=ModelConfig)
    teacher: ModelConfig | None = field(default_factory=ModelConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    policy_gradient: PolicyGradientConfig = field(default_factory=PolicyGradientConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def describe_range(limits: tuple[float, float, bool, bool]) -> str:
    """Words for a numeric range, e.g. '>= 0 and <= 1'; empty for one without ends."""
    low, high, open_low, open_high = limits
    parts = [f"{'>' if open_low else '>='} {low:g}"] if low > -math.inf else []
    parts += [f"{'<' if open_high else '<='} {high:g}"] if high < math.inf else []
    return " and ".join(parts)


def find_setting(key: str) -> tuple[Any, dict[str, Any]] | None:
    """Type and field metadata of a dotted key, or None where the schema has no such key.

    Below a free-form mapping (`task`, `reward.components`, `student.architecture`) every key exists.
    """
    hint: Any = Config
    metadata: dict[str, Any] = {}
    for part in key.split("."):
        candidates = [one for one in _members(hint) if is_dataclass(one) or get_origin(one) is dict]
        if not candidates:
            return None if hint is not Any else (Any, {})
        owner = candidates[0]
        if get_origin(owner) is dict:
            hint, metadata = get_args(owner)[1], {}
        elif part in (hints := get_type_hints(owner)):
            hint = hints[part]
            metadata = dict(next(item.metadata for item in fields(owner) if item.name == part))
        else:
            return None
    return hint, metadata


def describe_setting(key: str) -> str:
    """What a dotted key takes, in words: 'a number >= 0 and <= 1', 'one of raw, unit', 'text, or null'.

    Returns:
        The description; empty where the schema has no such key.
    """
    found = find_setting(key)
    if found is None:
        return ""
    hint, metadata = found
    names = [_describe_type(one, metadata) for one in _members(hint) if one is not type(None)]
    return " or ".join(names) + (", or null" if type(None) in _members(hint) else "")


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe_type(hint: Any, metadata: dict[str, Any]) -> str:
    """One type, with the range or the choices of its field."""
    if "choices" in metadata:
        return "one of " + ", ".join(metadata["choices"])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.name for member in hint)
    if is_dataclass(hint):
        return "the settings " + ", ".join(item.name for item in fields(hint))
    if hint in (int, float):
        limits = describe_range(metadata["range"]) if "range" in metadata else ""
        return ("a whole number " if hint is int else "a number ") + limits if limits else "a number"
    named = {bool: "true or false", str: "text", Any: "any value"}
    return named.get(hint, "a mapping of names to values")
