"""Named choices of the configuration, and the schema fields that declare a range or a list of choices.

One enumeration for each setting with a fixed set of values; its docstring states what the values mean. `number` and
`choice` build fields whose metadata `validation.py` checks and describes.
"""

from __future__ import annotations

import math
from dataclasses import field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class DivergenceName(Enum):
    """D(p_T, p_S) per token; `cross_entropy` is the log-loss on given tokens (SFT, SeqKD) and needs no teacher."""

    forward_kl = "forward_kl"
    reverse_kl = "reverse_kl"
    jsd = "jsd"
    tvd = "tvd"
    skew_kl = "skew_kl"
    reverse_skew_kl = "reverse_skew_kl"
    cross_entropy = "cross_entropy"

    @property
    def parameter(self) -> str | None:
        """The setting that this divergence alone takes."""
        return {"jsd": "beta", "skew_kl": "skew", "reverse_skew_kl": "skew"}.get(self.value)


class DivergenceScale(Enum):
    """`raw` is the formula as published; `unit` rescales it to the curvature of a KL where the models agree."""

    raw = "raw"
    unit = "unit"


class DivergenceReduction(Enum):
    """From tokens to one number; `sequence_mean` is the paper's Eq. 2."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"
    sequence_sum = "sequence_sum"


class Baseline(Enum):
    """What is subtracted from the reward before it multiplies the score function; `learned` is PPO's value head."""

    none = "none"
    batch_mean = "batch_mean"
    leave_one_out = "leave_one_out"
    group_mean = "group_mean"
    learned = "learned"


class SurrogateReduction(Enum):
    """`sequence_sum` gives the exact gradient of E[r]; the others weigh tokens as GRPO and DAPO do."""

    sequence_sum = "sequence_sum"
    sequence_mean = "sequence_mean"
    token_mean = "token_mean"


class KlEstimator(Enum):
    """One-sample estimates of KL(student || initial student) from the log-ratio of a sampled token."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KlPlace(Enum):
    """Where the sampled KL enters: subtracted from each token's reward, or added to the loss."""

    reward = "reward"
    loss = "loss"


class KdCredit(Enum):
    """`none` is the paper: no gradient through sampling; `reward_to_go` adds the score-function term of E[D]."""

    none = "none"
    reward_to_go = "reward_to_go"


class AlphaSchedule(Enum):
    """alpha as a function of the step; `balanced` makes alpha the share of the gradient norm."""

    constant = "constant"
    linear = "linear"
    warmup = "warmup"
    switch = "switch"
    balanced = "balanced"


class FixedSource(Enum):
    """Source of the completions in steps that do not train on student rollouts (lmbda < 1)."""

    dataset = "dataset"
    teacher = "teacher"


class TeacherPrompts(Enum):
    """`own` is the prompt that the completion answers; `shuffled` another prompt of the step, a control."""

    own = "own"
    shuffled = "shuffled"


class AdapterKind(Enum):
    """LoRA (Hu et al. 2021), or DoRA (Liu et al. 2024), which trains the norm of each weight row separately."""

    lora = "lora"
    dora = "dora"


class Quantization(Enum):
    """Quantisation of a frozen teacher's weights by bitsandbytes: LLM.int8() (8 bit) or NF4 (4 bit)."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class OptimizerName(Enum):
    """Optimisers; the paper uses Adafactor."""

    adamw = "adamw"
    adafactor = "adafactor"


class OnFailure(Enum):
    """What happens when a reward component fails: `stop` ends the run, `replace` uses reward.failure_value."""

    stop = "stop"
    replace = "replace"


class Metric(Enum):
    """Metrics of a completion against its reference; `bleu` includes chrF."""

    rouge = "rouge"
    bleu = "bleu"


class Decay(Enum):
    """Learning rate after the warm-up; `cooldown` is constant, then linear to 0 over the last `cooldown_steps`."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    cooldown = "cooldown"


class RolloutEngine(Enum):
    """What samples rollouts: transformers in this process, or a vLLM server that receives the student's weights."""

    transformers = "transformers"
    vllm = "vllm"


class Dtype(Enum):
    """Number format of the weights in memory."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class WandbMode(Enum):
    """`offline` writes W&B files to the run's folder without an account; `online` uploads; `disabled` does neither."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


def number(low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    """A required number between `low` and `high`; `open_low` and `open_high` exclude the bound itself."""
    return field(default=MISSING, metadata={"range": (low, high, open_low, open_high)})


def choice(*choices: str) -> Any:
    """A required text that must be one of `choices`, for values that need no Enum."""
    return field(default=MISSING, metadata={"choices": choices})
