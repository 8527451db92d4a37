"""Schema of the rollouts, see `config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from gkd_rl.choices import RolloutEngine
from gkd_rl.setting_fields import number


@dataclass
class VllmConfig:
    """The server of rollout.engine=vllm, and the NCCL group through which it takes weights."""

    url: str = MISSING
    group_port: int = number(1, 65535)
    wait: float = number(0)


@dataclass
class RolloutConfig:
    """How the student is sampled."""

    per_prompt: int = number(1)
    temperature: float = number(0, open_low=True)
    top_p: float = number(0, 1, open_low=True)
    top_k: int = number(0)
    engine: RolloutEngine = MISSING
    static_cache: bool = MISSING
    vllm: VllmConfig = field(default_factory=VllmConfig)
