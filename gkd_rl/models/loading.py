"""Models from a local folder, the Hub, a GGUF file, or a configuration with random weights, and back into a folder.

Safetensors only and no remote code unless asked. Every refusal is one `ModelError` that names the setting; what
follows from the configuration file alone is refused before any weights are read. A model folder is written under
another name and renamed, so that a folder that exists is complete.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    UNREADABLE,
    Checkpoint,
    Place,
    check_weights,
    first_line,
    read_config,
    refusal,
)
from gkd_rl.models.configurations import check_layers, prune
from gkd_rl.models.value_head import ValueHead


def load_tokenizer(place: Place) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, on the Hub or in a GGUF file.

    Raises:
        ModelError: there is none, with the setting that named it.
    """
    given = {"config": read_config(place)} if place.gguf else {}  # slow to read from the file
    trusted = place.options.trust_remote_code
    try:
        return AutoTokenizer.from_pretrained(
            place.path, revision=place.revision, trust_remote_code=trusted, **place.gguf, **given
        )
    except UNREADABLE as error:
        owner = place.key.rpartition(".")[0]
        instead = f"Set {owner}.tokenizer to a folder with tokenizer files or to a Hub id."
        if "trust_remote_code" in str(error):
            instead = f"It comes with code of its own: set {owner}.trust_remote_code=true to run it."
        raise ModelError(
            f"{place.key}={place.named}: no tokenizer could be loaded ({first_line(error)}). {instead}"
        ) from error


def is_on_hub(path: str | None) -> bool:
    """Whether a checkpoint's path can only be a Hub id: nothing local has that name."""
    return path is not None and not Path(path).expanduser().exists() and re.fullmatch(HUB_ID, path) is not None


def model_class(config: PreTrainedConfig) -> str:
    """The name of the transformers class that loads such a model, for the model card."""
    return _auto_class(config).__name__


def load_checkpoint(checkpoint: Checkpoint) -> PreTrainedModel:
    """The weights of a run's model: those of its files, or random ones that its seed decides.

    Raises:
        ModelError: the files hold nothing usable, or transformers cannot build the architecture.
    """
    if checkpoint.place is None:
        with _building(checkpoint.architecture, checkpoint.key):
            return random_model(copy.deepcopy(checkpoint.configuration), checkpoint.seed, checkpoint.dtype)
    return load_model(checkpoint.place, checkpoint.dtype, copy.deepcopy(checkpoint.configuration))


def load_model(
    place: Place, dtype: torch.dtype, config: PreTrainedConfig | None = None, **placement: Any
) -> PreTrainedModel:
    """The weights in a folder, on the Hub or in a GGUF file, with the layers that are kept; an adapter's merged in.

    Args:
        place: of the files.
        dtype: of the weights in memory.
        config: of the weights, where it is known already; None: that of `place`.
        placement: goes on to `from_pretrained`: `quantization_config`, `device_map`, ...

    Raises:
        ModelError: nothing usable is there, with the setting that named it.
    """
    keep, key = place.options.keep_layers, place.key
    if place.base is not None:
        check_weights(place)
        model = load_merged(load_model(place.base, dtype, config, **placement), Path(place.path), key)
        return model if keep is None else prune(model, keep)
    config = read_config(place) if config is None else config
    if keep is not None:
        check_layers(config, keep, f"{key.rpartition('.')[0]}.keep_layers")
    check_weights(place)
    if place.gguf:
        placement = {"quantization_config": GgufConfig(dequantize=True), **placement}
    try:
        loaded: Any = _auto_class(config).from_pretrained(
            place.path,
            revision=place.revision,
            config=config,
            dtype=dtype,
            use_safetensors=True if place.options.use_safetensors else None,
            weights_only=True,
            trust_remote_code=place.options.trust_remote_code,
            output_loading_info=True,
            **place.gguf,
            **placement,
        )
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise refusal(place, error) from error
    model, info = loaded
    _check_complete(place, info)
    return model if keep is None else prune(model, keep)


def new_configuration(architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedConfig:
    """The configuration of a new model, with the tokenizer's vocabulary and special ids.

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
    with _building(architecture, key):
        return AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )


def random_model(config: PreTrainedConfig, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights, decided by `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _auto_class(config).from_config(config, dtype=dtype)


def build_model(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype, key: str
) -> PreTrainedModel:
    """A new model of an architecture with random weights.

    Raises:
        ModelError: the architecture is not one that transformers can build.
    """
    config = new_configuration(architecture, tokenizer, key)
    with _building(architecture, key):
        return random_model(config, seed, dtype)


@contextmanager
def _building(architecture: dict[str, Any] | None, key: str) -> Iterator[None]:
    """Errors of transformers about an architecture as one `ModelError`."""
    try:
        yield
    except (KeyError, ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(
            f"{key}.architecture={architecture}: transformers cannot build it ({first_line(error)}). "
            "It takes model_type and the fields of that model's configuration."
        ) from error


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


def _check_complete(place: Place, info: dict[str, Any]) -> None:
    """Refuse weights that are not all there; transformers would draw the others at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{place.key}={place.named} lacks {len(missing)} weights of its configuration, the first is {missing[0]}: "
            f"set {place.key} to a checkpoint of the whole model."
        )


def _check_fields(architecture: dict[str, Any], key: str) -> None:
    """Refuse fields that the model's configuration does not have; transformers would accept them silently."""
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
        ModelError: with the first token whose ids differ, in the order of the student's, and the vocabularies' sizes.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    differing = [word for word in own.keys() | other.keys() if own.get(word) != other.get(word)]
    if differing:
        beyond = max(len(own), len(other))
        word = min(differing, key=lambda one: (own.get(one, beyond), other.get(one, beyond), one))
        raise ModelError(
            f"{names[0]} and {names[1]} have different tokenizers: {word!r} is {_id_of(word, own)} of the student "
            f"and {_id_of(word, other)} of the teacher ({len(own)} and {len(other)} tokens, {len(differing)} differ). "
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
    return f"id {ids[word]}" if word in ids else "no token"


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
