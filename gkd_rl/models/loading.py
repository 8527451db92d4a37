"""Models from a local folder, the Hub, a GGUF file, or a configuration with fresh weights.

Safetensors only and no remote code unless asked. Every refusal is one `ModelError` that names the setting; what the
configuration file alone can tell is refused before any weights are read.

Model folders: written beside and renamed, so that a folder that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gkd_rl.errors import ModelError
from gkd_rl.models.adapter import AdaptedModel, load_merged
from gkd_rl.models.architecture import DECODER_ONLY, ENCODER_DECODERS
from gkd_rl.models.checkpoint import (
    HUB_ID,
    PLAIN,
    UNREADABLE,
    LoadOptions,
    base_of,
    check_weights,
    first_line,
    locate,
    read_config,
    refusal,
)
from gkd_rl.models.configurations import check_layers, prune
from gkd_rl.models.value_head import ValueHead
from gkd_rl.types import Example


def load_tokenizer(path: str, revision: str | None, key: str, options: LoadOptions = PLAIN) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, on the Hub or in a GGUF file.

    Raises:
        ModelError: there is none, with the setting that named it.
    """
    place = locate(path, key, options)
    given = {"config": read_config(path, revision, key, options)} if place.gguf else {}  # slow to read from the file
    try:
        return AutoTokenizer.from_pretrained(
            place.path, revision=revision, trust_remote_code=options.trust_remote_code, **place.gguf, **given
        )
    except UNREADABLE as error:
        owner = key.rpartition(".")[0]
        instead = f"Set {owner}.tokenizer to a folder with tokenizer files or to a Hub id."
        if "trust_remote_code" in str(error):
            instead = f"It comes with code of its own: set {owner}.trust_remote_code=true to run it."
        raise ModelError(f"{key}={path}: no tokenizer could be loaded ({first_line(error)}). {instead}") from error


def is_on_hub(path: str | None) -> bool:
    """Whether a checkpoint's path can only be a Hub id: nothing local has that name."""
    return path is not None and not Path(path).expanduser().exists() and re.fullmatch(HUB_ID, path) is not None


def model_class(config: PreTrainedConfig) -> str:
    """The name of the transformers class that loads such a model, for the model card."""
    return _auto_class(config).__name__


def is_decoder_only(
    path: str | None, revision: str | None, architecture: dict[str, Any] | None, key: str, options: LoadOptions = PLAIN
) -> bool:
    """Whether completions continue their prompts, told from the configuration alone.

    Raises:
        ModelError: there is no configuration at `path`.
    """
    if path is None:
        return (architecture or {}).get("model_type") in DECODER_ONLY
    return not read_config(path, revision, f"{key}.path", options).is_encoder_decoder


def load_model(
    path: str,
    revision: str | None,
    dtype: torch.dtype,
    key: str,
    options: LoadOptions = PLAIN,
    **placement: Any,
) -> PreTrainedModel:
    """The weights in a folder, on the Hub or in a GGUF file, with the layers that are kept; an adapter's merged in.

    Args:
        path: folder, Hub id or GGUF file.
        revision: of the Hub repository.
        dtype: of the weights in memory.
        key: the setting that named `path`, for messages.
        options: how to read it.
        placement: goes on to `from_pretrained`: `quantization_config`, `device_map`, ...

    Raises:
        ModelError: nothing usable is there, with the setting that named it.
    """
    base = base_of(path, key)
    if base is not None:
        check_weights(path, key, options)
        model = load_model(base, None, dtype, key, replace(options, gguf_file=None, keep_layers=None), **placement)
        model = load_merged(model, Path(path).expanduser(), key)
        return model if options.keep_layers is None else prune(model, options.keep_layers)
    config = read_config(path, revision, key, options)
    if options.keep_layers is not None:
        check_layers(config, options.keep_layers, f"{key.rpartition('.')[0]}.keep_layers")
    place = locate(path, key, options)
    check_weights(path, key, options)
    if place.gguf:
        placement = {"quantization_config": GgufConfig(dequantize=True), **placement}
    try:
        loaded: Any = _auto_class(config).from_pretrained(
            place.path,
            revision=revision,
            config=config,
            dtype=dtype,
            use_safetensors=True if options.use_safetensors else None,
            weights_only=True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **place.gguf,
            **placement,
        )
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise refusal(key, path, error, revision, place) from error
    model, info = loaded
    _check_complete(key, path, info)
    return model if options.keep_layers is None else prune(model, options.keep_layers)


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
            f"{key}.architecture={architecture}: transformers cannot build it ({first_line(error)}). "
            "It takes model_type and the fields of that model's configuration."
        ) from error
    return model


def empty_model(config: PreTrainedConfig, dtype: torch.dtype, keep_layers: Sequence[int] | None) -> PreTrainedModel:
    """A model of shapes alone, on the meta device, with the layers that are kept."""
    with torch.device("meta"):
        model = _auto_class(config).from_config(config, dtype=dtype)
        if getattr(config, "scale_decoder_outputs", True) is False:  # T5 v1.1 stores a head of its own
            head: Any = model.get_output_embeddings()
            head.weight = nn.Parameter(torch.empty_like(head.weight))
    return model if keep_layers is None else prune(model, keep_layers)


def _auto_class(config: PreTrainedConfig) -> type[AutoModelForSeq2SeqLM] | type[AutoModelForCausalLM]:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _check_complete(key: str, path: str, info: dict[str, Any]) -> None:
    """Refuse weights that are not all there; transformers would draw the others at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{key}={path} lacks {len(missing)} weights of its configuration, the first is {missing[0]}: set {key} to "
            "a checkpoint of the whole model."
        )


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


def check_same_vocabulary(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    names: tuple[str, str] = ("student", "teacher"),
) -> None:
    """Refuse models that do not mean the same by the same id.

    Raises:
        ModelError: with the first word whose ids differ, in the order of the student's, and the vocabularies' sizes.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    differing = [word for word in own.keys() | other.keys() if own.get(word) != other.get(word)]
    if differing:
        beyond = max(len(own), len(other))
        word = min(differing, key=lambda one: (own.get(one, beyond), other.get(one, beyond), one))
        raise ModelError(
            f"{names[0]} and {names[1]} have different tokenizers: {word!r} is {_id_of(word, own)} of the student "
            f"and {_id_of(word, other)} of the teacher ({len(own)} and {len(other)} words, {len(differing)} differ). "
            "Set teacher.path to a model with the student's tokenizer."
        )


def check_same_ends(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse a teacher that goes on where the student's texts end.

    Args:
        student: ids that end the student's texts, the one that ends its references first.
        teacher: ids that end the teacher's.

    Raises:
        ModelError: the teacher does not know the end of the student's references.
    """
    if student[0] not in teacher:
        raise ModelError(
            f"student ends sequences with id {student[0]}, teacher with {' or '.join(map(str, teacher))}: "
            "choose models that share the end-of-sequence token."
        )


def _id_of(word: str, ids: dict[str, int]) -> str:
    return f"id {ids[word]}" if word in ids else "no word"


# Source that cannot change the weights of the supervised stage, packages and files; all other source counts.
NOT_TRAINING = (
    *(
        "__init__.py",
        "run.py",
        "doctor.py",
        "evaluate.py",
        "merge.py",
        "errors.py",
        "outputs",
        "evaluation",
        "planning",
    ),
    *("cli", "config/validation.py", "config/rules.py", "config/model_rules.py", "config/run_rules.py"),
    *("config/launch.py", "models/configurations.py", "models/remote_teacher.py", "pipeline/experiment.py"),
    *("pipeline/results.py", "pipeline/memory.py", "pipeline/preflight.py", "pipeline/checkpoints.py"),
    *("pipeline/machine_checks.py", "pipeline/model_checks.py", "training/state.py", "training/snapshot.py"),
)


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
