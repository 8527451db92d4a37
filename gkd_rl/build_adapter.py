"""Configuration -> the student's adapter."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel

from gkd_rl.adapter import AdaptedModel
from gkd_rl.choices import AdapterKind
from gkd_rl.config import Config
from gkd_rl.errors import ConfigError
from gkd_rl.model_files import base_of


def attach_adapter(config: Config, model: PreTrainedModel) -> AdaptedModel:
    """The student with the configured adapter, fresh.

    Raises:
        ModelError: the student has no such layers.
    """
    adapter, student = config.adapter, config.student
    if adapter is None:
        raise ConfigError(["adapter=null: there is nothing to attach."])
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if adapter.targets is None else adapter.targets,
        use_rslora=adapter.rslora,
        use_dora=adapter.kind is AdapterKind.dora,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        revision=student.revision,
    )
    changed = (student.sft, student.keep_layers, student.gguf_file)
    path = student.path if all(one is None for one in changed) else None
    if path is not None and base_of(path, "student.path") is not None:
        path = None
    if path is not None and Path(path).expanduser().exists():
        path = str(Path(path).expanduser().absolute())
    return AdaptedModel(model, settings, student.seed, None if path is None or path.endswith(".gguf") else path)
