"""A reward model's checkpoint: a local folder or a Hub id, looked at when it is named and loaded when it is needed."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNLIMITED = 10**6  # transformers writes a huge number where a tokenizer knows no longest text


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is, and how it is read.

    Attributes:
        path: a local folder or a Hub id.
        revision: of a Hub id: branch, tag or commit.
        device: where it runs, e.g. cpu, cuda; null: cuda where there is one.
        dtype: of its weights.
        max_tokens: longest input; null: what tokenizer and configuration say.

    Raises:
        ValueError: the path can only be a local folder and is none, or another setting is out of range.
    """

    path: str
    revision: str | None = None
    device: str | None = None
    dtype: str = "float32"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        local = Path(self.path).expanduser()
        is_local = local.is_absolute() or self.path.startswith((".", "~")) or not HUB_ID.fullmatch(self.path)
        if is_local and not local.is_dir():
            raise ValueError(f"path={self.path}: there is no folder {local}; it takes a folder that exists or a Hub id")
        if local.is_dir() and not (local / "config.json").is_file():
            raise ValueError(f"path={self.path}: {local} has no config.json; it takes a folder of save_pretrained")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}: takes one of {', '.join(DTYPES)}")
        if self.max_tokens is not None and self.max_tokens < 8:
            raise ValueError(f"max_tokens={self.max_tokens}: takes a whole number >= 8, or null")

    @property
    def place(self) -> str:
        """The folder, or the Hub id."""
        local = Path(self.path).expanduser()
        return str(local) if local.is_dir() else self.path

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""
        return AutoTokenizer.from_pretrained(self.place, revision=self.revision, trust_remote_code=False)

    def model(self, auto_class: Any) -> PreTrainedModel:
        """The model in evaluation mode, without gradients.

        Raises:
            ValueError: weights of `auto_class` are missing: a head would be random.
        """
        model, info = auto_class.from_pretrained(
            self.place,
            revision=self.revision,
            dtype=DTYPES[self.dtype],
            weights_only=True,  # of a pickled checkpoint; and a repository's own code is not run
            trust_remote_code=False,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"path={self.path}: the checkpoint has no {', '.join(sorted(info['missing_keys'])[:3])}: it is no "
                f"trained reward model of {auto_class.__name__}. Train it first: python -m reward_models.train"
            )
        return model.to(device_of(self.device)).eval().requires_grad_(False)


def device_of(name: str | None) -> str:
    """A device by its name, or the GPU where there is one."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Tokens that fit a model, and no more than are wanted."""
    known = [wanted, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return min([UNLIMITED, *(one for one in known if one)])


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """A folder as transformers loads it, written beside and renamed, so that a folder that exists is whole."""
    place = Path(folder).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        beside.chmod(0o755)
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@torch.inference_mode()
def in_batches(lengths: Sequence[int], batch_size: int, score: Callable[[list[int]], Tensor]) -> list[float]:
    """Scores of N inputs, computed in batches of similar length.

    Args:
        lengths: tokens of each input.
        batch_size: inputs at a time.
        score: positions of inputs -> their scores, [B].
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    scores = [0.0] * len(lengths)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, value in zip(chosen, score(chosen).float().tolist(), strict=True):
            scores[i] = value
    return scores
