"""Schema of the rollouts, see `config.py`.

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
    AdapterKind,
    Decay,
    Dtype,
    OptimizerName,
    Quantization,
    RolloutEngine,
    TeacherPrompts,
    number,
)


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
