"""Models and tokenizers from a local folder, the Hub, or a configuration with fresh weights."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gkd_rl.architecture import DECODER_ONLY, ENCODER_DECODERS
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


def model_class(config: PreTrainedConfig) -> str:
    """The name of the transformers class that loads such a model, for the model card."""
    return _auto_class(config).__name__


def is_decoder_only(path: str | None, revision: str | None, architecture: dict[str, Any] | None, key: str) -> bool:
    """Whether completions continue their prompts, told from the configuration alone.

    Raises:
        ModelError: there is no configuration at `path`.
    """
    if path is None:
        return (architecture or {}).get("model_type") in DECODER_ONLY
    try:
        return not AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False).is_encoder_decoder
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{key}.path={path}: no model could be loaded ({_first_line(error)}). "
            f"Set {key}.path to a folder with config.json and model.safetensors or to a Hub id."
        ) from error


def load_model(path: str, revision: str | None, dtype: torch.dtype, key: str) -> PreTrainedModel:
    """The weights in a folder or on the Hub; safetensors only, no remote code.

    Raises:
        ModelError: nothing usable is there, with the setting that named it.
    """
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        return _auto_class(config).from_pretrained(
            path, revision=revision, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{key}={path}: no model could be loaded ({_first_line(error)}). "
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
    kind = settings.pop("model_type")
    if kind in DECODER_ONLY:
        settings["bos_token_id"] = tokenizer.bos_token_id
    else:
        settings["decoder_start_token_id"] = tokenizer.pad_token_id
    try:
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _auto_class(config).from_config(config, dtype=dtype)
    except (KeyError, ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(
            f"{key}.architecture={architecture}: transformers cannot build it ({_first_line(error)}). "
            "It takes model_type and the fields of that model's configuration."
        ) from error
    return model


def _auto_class(config: PreTrainedConfig) -> type[AutoModelForSeq2SeqLM] | type[AutoModelForCausalLM]:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _check_fields(architecture: dict[str, Any], key: str) -> None:
    """Refuse fields that the model's configuration does not have; transformers would take them without a word."""
    kind = str(architecture.get("model_type"))
    if kind not in ENCODER_DECODERS + DECODER_ONLY:
        raise ModelError(
            f"{key}.architecture.model_type={kind} cannot be trained here: take one of "
            f"{', '.join(ENCODER_DECODERS + DECODER_ONLY)}."
        )
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
