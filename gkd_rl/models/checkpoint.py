"""A model before its weights are read: where its files are, its configuration, its tokenizer and its limits.

`locate` finds the files once; `Checkpoint` is what preflight, planning, building and loading are handed. Everything
that is refused here is refused before any weight is read.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import pickle
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_gguf_available

from gkd_rl.errors import ModelError
from gkd_rl.models.architecture import DECODER_ONLY, ENCODER_DECODERS

# All that transformers raises at files that are missing, foreign or broken.
UNREADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError, EOFError, ImportError, NotImplementedError),
    *(SafetensorError, StrictDataclassError, pickle.UnpicklingError, struct.error),
)


# What the configurations of the models that can be trained here call the dropout of their layers.
DROPOUTS = ("dropout_rate", "dropout", "attention_dropout", "activation_dropout", "resid_pdrop", "embd_pdrop")
HUB_ID = r"[\w.-]+(/[\w.-]+)?"
ADAPTER_FILE = "adapter_config.json"
BASE = "base"  # folder of the frozen weights beside an adapter


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is read.

    Attributes:
        gguf_file: name of a GGUF file in the folder or Hub repository; None where `path` names it, or for none.
        trust_remote_code: run code that comes with the checkpoint.
        use_safetensors: False also takes pickled weights (read with `weights_only`).
        keep_layers: layers that are kept, in rising order; None: all of them.
        dropout: of all layers while the model is trained; None: as in the checkpoint's configuration.
    """

    gguf_file: str | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True
    keep_layers: Sequence[int] | None = None
    dropout: float | None = None


PLAIN = LoadOptions()


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's files are, found once, in the terms of `from_pretrained`.

    Attributes:
        key: the setting that named it, e.g. student.path; for messages.
        named: its value.
        path: folder or Hub id.
        revision: of the Hub repository.
        gguf: `gguf_file` as a keyword; empty without one.
        options: how the files are read.
    """

    key: str
    named: str
    path: str
    revision: str | None = None
    gguf: dict[str, str] = field(default_factory=dict)
    options: LoadOptions = PLAIN

    @functools.cached_property
    def base(self) -> Place | None:
        """Place of the weights that the adapter in this folder belongs to; None for a folder that holds no adapter.

        Raises:
            ModelError: the adapter's configuration is damaged, or its base is missing.
        """
        found = None if self.gguf else _base_of(Path(self.path), f"{self.key}={self.named}")
        options = replace(self.options, gguf_file=None, keep_layers=None)
        return None if found is None else locate(found, None, self.key, options)


@dataclass(frozen=True)
class Checkpoint:
    """A model of a run as far as it is known before any weight is read; resolved once and handed on.

    Attributes:
        key: student or teacher, for messages.
        place: of its files; None for a model with random weights.
        architecture: model_type and fields of the configuration of a model with random weights.
        configuration: of the model, with the dropout that it is trained with.
        tokenizer: of its text.
        eos_ids: ids that end a sequence; empty where the tokenizer alone has them.
        chat: prompts are user turns of the tokenizer's chat template.
        max_prompt_tokens: longer prompts are cut.
        max_completion_tokens: longer completions are cut.
        dtype: of the weights in memory.
        seed: of random weights.
    """

    key: str
    place: Place | None
    architecture: dict[str, Any] | None
    configuration: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    chat: bool
    max_prompt_tokens: int
    max_completion_tokens: int
    dtype: torch.dtype
    seed: int

    @property
    def decoder_only(self) -> bool:
        """Completions continue their prompts."""
        return not self.configuration.is_encoder_decoder

    @property
    def named(self) -> str:
        """The setting that the model comes from, as it was typed."""
        return f"{self.key}.architecture" if self.place is None else f"{self.key}.path={self.place.named}"

    @property
    def keep_layers(self) -> Sequence[int] | None:
        """Layers that are kept, in rising order; None: all of them."""
        return None if self.place is None else self.place.options.keep_layers


def locate(path: str, revision: str | None, key: str, options: LoadOptions = PLAIN) -> Place:
    """Folder or Hub id of a checkpoint, and its GGUF file.

    Args:
        path: as configured; a `.gguf` file stands for its folder and itself.
        revision: of the Hub repository.
        key: the setting that named it.
        options: how to read it.

    Raises:
        ModelError: the folder or the GGUF file is missing, or `gguf` is not installed.
    """
    local, gguf_file = Path(path).expanduser(), options.gguf_file
    if gguf_file is None and local.suffix == ".gguf":
        local, gguf_file = local.parent, local.name
    is_path = local.is_absolute() or path.startswith((".", "~")) or not re.fullmatch(HUB_ID, path)
    if is_path and not local.is_dir():
        raise ModelError(f"{key}={path}: there is no folder {local}. Set {key} to a folder that exists or to a Hub id.")
    if gguf_file is None:
        return Place(key, path, str(local) if local.is_dir() else path, revision, {}, options)
    if local.is_dir() and not (local / gguf_file).is_file():
        beside = ", ".join(sorted(one.name for one in local.glob("*.gguf"))) or "no GGUF file"
        setting = key if options.gguf_file is None else f"{key.rpartition('.')[0]}.gguf_file"
        raise ModelError(f"{setting}={gguf_file}: {local} has no such file, it has {beside}. Set {setting} to one.")
    if not is_gguf_available():
        raise ModelError(f"{key}={path}: reading {gguf_file} needs the package gguf; type `pip install gguf`.")
    return Place(key, path, str(local) if local.is_dir() else path, revision, {"gguf_file": gguf_file}, options)


def _base_of(folder: Path, named: str) -> str | None:
    """Folder or Hub id of the weights that the adapter in a folder belongs to; None for a folder without an adapter.

    What lies beside the adapter comes first, so that a folder that was moved still finds its own weights.

    Raises:
        ModelError: the adapter's configuration is damaged, or its base is not there.
    """
    if not (folder / ADAPTER_FILE).is_file():
        return None
    try:
        settings = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{named}: {ADAPTER_FILE} is damaged ({first_line(error)}): copy the adapter again."
        ) from error
    if (folder / BASE).is_dir():
        return str(folder / BASE)
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{named}: {ADAPTER_FILE} names no base model: write the folder or Hub id of the model that the "
            "adapter was trained on into its base_model_name_or_path."
        )
    if Path(base).expanduser().is_absolute() and not Path(base).expanduser().is_dir():
        raise ModelError(
            f"{named}: the adapter's base {base} is not there: put that model back, or write where it is into "
            f"base_model_name_or_path of {folder / ADAPTER_FILE}."
        )
    return base


def read_config(place: Place) -> PreTrainedConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        ModelError: there is none, or not one of a model that can be trained here, with the setting that named it.
    """
    if place.base is not None:
        return read_config(place.base)
    key, path, options = place.key, place.named, place.options
    file = Path(place.path) / place.gguf.get("gguf_file", "")
    if not place.gguf and file.is_dir() and not (file / "config.json").is_file():
        raise ModelError(f"{key}={path}: the folder has no config.json. {_instead_of(file, key)}")
    try:
        if place.gguf and file.is_file():
            config = copy.deepcopy(_read_gguf(place.path, place.gguf["gguf_file"], file.stat().st_mtime_ns))
        else:
            trusted = options.trust_remote_code
            config = AutoConfig.from_pretrained(
                place.path, revision=place.revision, trust_remote_code=trusted, **place.gguf
            )
    except UNREADABLE as error:
        raise refusal(place, error) from error
    if config.model_type not in ENCODER_DECODERS + DECODER_ONLY:
        raise ModelError(
            f"{key}={path} has model_type={config.model_type}, which cannot be trained here: set {key} to a model of "
            f"type {', '.join(ENCODER_DECODERS + DECODER_ONLY)}."
        )
    for name in DROPOUTS if options.dropout is not None else ():
        if hasattr(config, name):
            setattr(config, name, options.dropout)
    return config


def end_ids(place: Place) -> tuple[int, ...]:
    """Ids that end a sequence as `generate` has it: those of generation_config.json, or else of the configuration.

    Raises:
        ModelError: there is no configuration.
    """
    if place.base is not None:
        return end_ids(place.base)
    found: int | list[int] | None = None
    if not place.gguf:
        try:
            found = GenerationConfig.from_pretrained(place.path, revision=place.revision or "main").eos_token_id
        except (OSError, ValueError):  # most checkpoints of base models have no such file
            found = None
    if found is None:
        found = read_config(place).eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)


@functools.lru_cache(maxsize=4)
def _read_gguf(folder: str, gguf_file: str, stamp: int) -> PreTrainedConfig:
    """The configuration in a file that was last written at `stamp`; reading one takes seconds, so it is kept."""
    return AutoConfig.from_pretrained(folder, gguf_file=gguf_file)


def _instead_of(folder: Path, key: str) -> str:
    """What to type for a folder that is no checkpoint: what lies in it may be one."""
    ggufs = sorted(one.name for one in folder.glob("*.gguf"))
    if ggufs:
        return f"It has {', '.join(ggufs)}: set {key} to {folder / ggufs[0]}."
    inner = sorted(one.parent for name in ("config.json", ADAPTER_FILE) for one in folder.glob(f"*/{name}"))
    return f"Set {key} to {inner[0] if inner else 'a folder with config.json and model.safetensors or to a Hub id'}."


def refusal(place: Place, error: Exception) -> ModelError:
    """The error for files that transformers could not read."""
    key, revision = place.key, place.revision
    instead = f"Set {key} to a folder with config.json and model.safetensors or to a Hub id."
    owner = key.rpartition(".")[0]
    if "trust_remote_code" in str(error):
        instead = (
            f"It comes with code of its own: set {owner}.trust_remote_code=true to run it, or choose another {key}."
        )
    elif place.gguf:
        instead = f"Copy {place.gguf['gguf_file']} again if it is cut short, or set {key} to another model."
    elif revision is not None and not Path(place.path).is_dir():
        instead = f"Set {owner}.revision={revision} to a branch, tag or commit that {place.named} has, or to null."
    return ModelError(f"{key}={place.named}: no model could be loaded ({first_line(error)}). {instead}")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_weights(place: Place) -> None:
    """Refuse a folder whose weights are missing or damaged; the contents of the Hub and of GGUF files are not checked.

    Raises:
        ModelError: with the setting that named it.
    """
    folder, named = Path(place.path), f"{place.key}={place.named}"
    if place.base is not None:
        _check_whole(folder, [ADAPTER_WEIGHTS], named)
        check_weights(place.base)
        return
    if place.gguf or not folder.is_dir():
        return
    files = [*_files(folder, named)]
    if files:
        _check_whole(folder, files, named)
        return
    if not list(folder.glob("*.bin")):
        raise ModelError(f"{named}: the folder has no {WEIGHTS}. Set {place.key} to one that has its weights.")
    if place.options.use_safetensors:
        raise ModelError(
            f"{named}: its weights are pickled. Set {place.key.rpartition('.')[0]}.use_safetensors=false to read them, "
            f"or convert them to {WEIGHTS}."
        )


def _files(folder: Path, named: str) -> Iterator[str]:
    """The safetensors files that the folder names."""
    if (folder / WEIGHTS).is_file():
        yield WEIGHTS
    elif (folder / INDEX).is_file():
        try:
            yield from sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{named}: {INDEX} is damaged ({first_line(error)}): copy the checkpoint again."
            ) from error


def _check_whole(folder: Path, files: list[str], named: str) -> None:
    """Refuse files that are absent, or shorter than their headers state."""
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{named}: {len(absent)} of {len(files)} files of weights are not there, the first is {absent[0]}: "
            "copy the checkpoint again."
        )
    for name in files:
        try:
            with safe_open(folder / name, framework="pt"):  # pyright: ignore[reportGeneralTypeIssues]
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{named}: {name} is damaged ({first_line(error)}): copy the checkpoint again.") from error


def folder_digest(path: str | None) -> str | None:
    """Hash of the files of a local checkpoint, folder or GGUF file; None for a Hub id: its revision identifies it."""
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
