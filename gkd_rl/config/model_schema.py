"""Typed schema of models, rollouts and optimisers; `schema.py` has the rest of the schema and its conventions."""

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
    """The server of rollout.engine=vllm, and the NCCL group through which it receives the student's weights."""

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
    """A training stage: its steps, data, optimiser and micro-batches."""

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
    """Supervised fine-tuning on the task's references, the stage before the student's own training."""

    batch_size: int = number(1)


@dataclass
class ModelConfig:
    """A checkpoint (`path`) or a newly initialised model (`architecture`), and its supervised stage."""

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
    """Low-rank adapters of the student, whose own weights are then frozen."""

    kind: AdapterKind = MISSING
    rank: int = number(1)
    lora_alpha: float = number(0, open_low=True)
    dropout: float = number(0, 1, open_high=True)
    targets: list[str] | None = MISSING
    rslora: bool = MISSING


@dataclass
class EndpointConfig:
    """A teacher behind an OpenAI-compatible server that returns log-probabilities of a prompt's tokens (vLLM)."""

    url: str = MISSING
    model: str = MISSING
    top_k: int = number(1)
    api_key_variable: str | None = MISSING
    timeout: float = number(0, open_low=True)
    parallel: int = number(1)


@dataclass
class TeacherConfig(ModelConfig):
    """The teacher p_T: a model in this process, one behind an endpoint, or the student before training."""

    initial_student: bool = MISSING
    prompts: TeacherPrompts = MISSING
    quantization: Quantization = MISSING
    device: str | None = MISSING
    offload: bool = MISSING
    audit_prompts: int = number(0)
    output_cache_gib: float | None = number(0, open_low=True)
    endpoint: EndpointConfig | None = MISSING
