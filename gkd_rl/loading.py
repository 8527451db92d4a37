"""Models and tokenizers from a local folder, the Hub, or a configuration with fresh weights."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gkd_rl.errors import ModelError


def load_tokenizer(path: str, revision: str | None, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the Hub.

    Raises:
        ModelError: there is none, with the setting that named it.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{key}={path}: no tokenizer could be loaded ({_first_line(error)}). "
            f"Set {key} to a folder with tokenizer files or to a Hub id."
        ) from error


def load_model(path: str, revision: str | None, dtype: torch.dtype, key: str) -> PreTrainedModel:
    """The weights in a folder or on the Hub; safetensors only, no remote code.

    Raises:
        ModelError: nothing usable is there, with the setting that named it.
    """
    try:
        return AutoModelForSeq2SeqLM.from_pretrained(path, revision=revision, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{key}={path}: no encoder-decoder model could be loaded ({_first_line(error)}). "
            f"Set {key} to a folder with config.json and model.safetensors or to a Hub id."
        ) from error


def build_model(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype, key: str
) -> PreTrainedModel:
    """A model with random weights, decided by `seed` alone, with the tokenizer's vocabulary and special ids.

    Raises:
        ModelError: the architecture is not one that transformers can build.
    """
    settings = {**architecture}
    _check_fields(settings, key)
    try:
        config = AutoConfig.for_model(
            settings.pop("model_type"),
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            **settings,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForSeq2SeqLM.from_config(config, dtype=dtype)
    except (KeyError, ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(
            f"{key}.architecture={architecture}: transformers cannot build it ({_first_line(error)}). "
            "It takes model_type and the fields of that model's configuration."
        ) from error
    return model


def _check_fields(architecture: dict[str, Any], key: str) -> None:
    """Refuse fields that the model's configuration does not have; transformers would take them without a word."""
    kind = str(architecture.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{key}.architecture.model_type={kind}: transformers knows no such model, e.g. take t5.")
    known = CONFIG_MAPPING[kind]()
    unknown = [name for name in architecture if not hasattr(known, name)]
    if unknown:
        raise ModelError(
            f"{key}.architecture.{unknown[0]}={architecture[unknown[0]]}: {type(known).__name__} has no such field; "
            f"it takes {', '.join(sorted(known.to_dict()))}."
        )


def check_same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse models that do not mean the same by the same id.

    Raises:
        ModelError: with the first difference.
    """
    student_ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    for word in sorted(student_ids.keys() | teacher_ids.keys()):
        if student_ids.get(word) != teacher_ids.get(word):
            raise ModelError(
                f"student and teacher have different tokenizers: {word!r} is id {student_ids.get(word)} of the student "
                f"and {teacher_ids.get(word)} of the teacher. Choose a teacher with the student's tokenizer."
            )
    if student.eos_token_id != teacher.eos_token_id:
        raise ModelError(
            f"student ends sequences with id {student.eos_token_id}, teacher with {teacher.eos_token_id}: "
            "choose models that share the end-of-sequence token."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
