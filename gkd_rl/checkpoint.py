"""Model folders: written beside and renamed, so that a folder that exists is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gkd_rl.adapter import AdaptedModel
from gkd_rl.types import Example
from gkd_rl.value_head import ValueHead

# Modules that cannot change the weights of the supervised stage; any other module counts.
NOT_TRAINING = {
    *("run", "precheck", "validation", "pipeline", "outputs", "evaluation", "metrics", "uncertainty", "tracking"),
    *("json_files", "environment", "report_table", "model_card", "checkpoint", "setting_words", "contradictions"),
    *("cost", "meter", "step_metrics", "endpoint", "teacher_audit", "teacher_contradictions"),
    *("loading_contradictions", "launched", "ranks", "first_look", "weight_files", "live_memory", "memory_plan"),
    *("model_memory", "peak_memory", "known_shapes", "build_plan", "checkup", "doctor", "run_record"),
    *("evaluate", "settings", "suites", "local_data", "code_eval", "harness", "mt_bench", "mt_judge", "report"),
    *("sweep_config", "sweep_run", "sweep_folder", "sweep_check", "sweep_contradictions", "rollout_contradictions"),
    *("faults", "errors", "hydra_code", "finding", "out_of_memory", "model_checkup", "machine_checkup"),
    *("prepared", "step_profile", "teacher_outputs", "tensor_shards"),
    *("safety_config", "snapshot", "training_state", "checkpoints", "stopping", "resumed_run", "post_mortem"),
    "checkpoint_contradictions",
}


def save_model(
    folder: Path,
    model: PreTrainedModel | AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    value_head: ValueHead | None = None,
) -> None:
    """Weights (safetensors), configuration, tokenizer and model card, as transformers loads them; PPO's value head.

    Of a model with an adapter, the adapter as peft loads it, and `base/` where no checkpoint holds the frozen weights.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if isinstance(model, AdaptedModel):
            model.save(beside, folder)
        else:
            model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        (beside / "README.md").write_text(card, encoding="utf-8")
        if value_head is not None:
            value_head.save(beside)
        beside.chmod(0o755)
        old = beside.with_name(beside.name + ".old")
        if folder.exists():
            os.replace(folder, old)  # set aside, not removed: a folder of that name is missing for a rename only
        os.replace(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def source_digest() -> str:
    """Hash of the source that training runs through, and of the libraries whose numerics it depends on."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.stem in NOT_TRAINING:
            continue
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    for library in ("torch", "transformers", "tokenizers"):
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()


def rows_digest(examples: Iterable[Example]) -> str:
    """Hash of training rows, so that an edited data file is another data set."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.reference]).encode())
    return digest.hexdigest()


def folder_digest(path: str | None) -> str | None:
    """Hash of the files of a local checkpoint, folder or GGUF file; None for a Hub id: its revision tells."""
    place = None if path is None else Path(path).expanduser()
    if place is None or not place.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def cache_key(**facts: Any) -> str:
    """Hash of everything a cached model depends on; `facts` must be JSON."""
    text = json.dumps({**facts, "source": source_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
