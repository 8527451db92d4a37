"""Where models, samples and outputs of a teacher are kept, by the hash of everything that decides them.

A key covers the settings, the rows, the tokenizer, the source that training runs through and the versions of the
libraries whose numerics it depends on, so that a changed input is another entry and never a wrong one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gkd_rl.config import AdapterConfig, Config, ModelConfig
from gkd_rl.config.launch import processes
from gkd_rl.generation.codec import TextCodec
from gkd_rl.models.checkpoint import folder_digest
from gkd_rl.types import Example

# Source that cannot change the weights of the supervised stage, packages and files; all other source counts.
NOT_TRAINING = (
    *("__init__.py", "run.py", "doctor.py", "evaluate.py", "merge.py", "errors.py", "py.typed"),
    *("cli/", "outputs/", "evaluation/", "planning/", "config/validation.py", "config/rules.py", "config/launch.py"),
    *("config/model_rules.py", "config/run_rules.py", "models/remote_teacher.py", "training/state.py"),
    *("pipeline/experiment.py", "pipeline/results.py", "pipeline/memory.py", "pipeline/preflight.py"),
    "pipeline/checkpoints.py",
)


def source_digest() -> str:
    """Hash of the source that training runs through, and of the libraries whose numerics it depends on."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if not name.startswith(NOT_TRAINING):
            digest.update(name.encode() + file.read_bytes())
    for library in ("torch", "transformers", "tokenizers"):
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()


def rows_digest(examples: Iterable[Example]) -> str:
    """Hash of training rows, so that an edited data file is another data set."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.reference]).encode())
    return digest.hexdigest()


def cache_key(**facts: Any) -> str:
    """Hash of everything a cached model depends on; `facts` must be JSON."""
    text = json.dumps({**facts, "source": source_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_key(model: ModelConfig, codec: TextCodec, train: list[Example], adapter: AdapterConfig | None = None) -> str:
    """Hash of everything that decides a model's weights before the run's own stage."""
    return cache_key(
        model=_plain(model),
        adapter=None if adapter is None else _values(adapter),
        checkpoint=folder_digest(model.path),
        rows=rows_digest(train if model.sft is None else train[: model.sft.train_rows]),
        limits=[codec.max_prompt_tokens, codec.max_completion_tokens],
        vocabulary=sorted(codec.tokenizer.get_vocab().items()),
        end=codec.eos_ids[0],
        template=None if codec.chat is None else codec.tokenizer.chat_template,
        threads=torch.get_num_threads(),
        processes=processes(),
    )


def supervised_cache(config: Config, key: str) -> Path:
    """Folder of a supervised model, by its key."""
    return Path(config.cache_dir).expanduser() / "supervised" / key


def samples_cache(config: Config, teacher_key: str, codec: TextCodec, train: list[Example]) -> Path:
    """Folder of the teacher's samples, named by the hash of everything that decides them."""
    key = cache_key(
        teacher=teacher_key,
        quantization=None if config.teacher is None else config.teacher.quantization.value,
        rows=rows_digest(train),
        limits=[codec.max_prompt_tokens, codec.max_completion_tokens],
        ends=codec.eos_ids,
        temperature=config.fixed_data.temperature,
        seed=config.fixed_data.seed,
        threads=torch.get_num_threads(),
    )
    return Path(config.cache_dir).expanduser() / "teacher_samples" / key


def _plain(model: ModelConfig) -> dict[str, Any]:
    """What decides a model's weights, as JSON values; what a teacher is used for does not."""
    values = _values(model)
    return {item.name: values[item.name] for item in dataclasses.fields(ModelConfig)}


def _values(settings: ModelConfig | AdapterConfig) -> dict[str, Any]:
    """All settings as JSON values."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k: getattr(v, "value", v) for k, v in items})
