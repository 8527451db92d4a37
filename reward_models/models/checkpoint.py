"""Checkpoints of reward models: where one is, loading it on first use, saving a trained one, and scoring in batches."""

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
UNLIMITED = 10**6  # tokens; transformers uses a huge number for a tokenizer without a limit


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is and how it is loaded. Settings are checked here; nothing is loaded before a method is called.

    Attributes:
        path: a local folder or a Hub id.
        revision: branch, tag or commit of a Hub id.
        device: where the model runs, e.g. cpu, cuda; None: cuda if available, else cpu.
        dtype: of the weights, a key of `DTYPES`.
        max_tokens: longest input; None: the limit of tokenizer and model configuration.

    Raises:
        ValueError: the path can only be a local folder and does not exist, or another setting is out of range.
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
    def source(self) -> str:
        """What `from_pretrained` takes: the folder, or the Hub id."""
        local = Path(self.path).expanduser()
        return str(local) if local.is_dir() else self.path

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer; code of the repository is not run."""
        return AutoTokenizer.from_pretrained(self.source, revision=self.revision, trust_remote_code=False)

    def model(self, auto_class: Any) -> PreTrainedModel:
        """Load the model in evaluation mode, without gradients; code of the repository is not run.

        Args:
            auto_class: class of transformers, e.g. AutoModelForSequenceClassification.

        Raises:
            ValueError: weights of `auto_class` are missing, so that its head would be random.
        """
        model, info = auto_class.from_pretrained(
            self.source,
            revision=self.revision,
            dtype=DTYPES[self.dtype],
            weights_only=True,  # a pickled checkpoint runs no code either
            trust_remote_code=False,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"path={self.path}: the checkpoint has no {', '.join(sorted(info['missing_keys'])[:3])}: it is not a "
                f"trained reward model of {auto_class.__name__}. Train it first: python -m reward_models.train"
            )
        return model.to(device_of(self.device)).eval().requires_grad_(False)


def device_of(name: str | None) -> str:
    """The device of that name; for None cuda if available, else cpu."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Longest input in tokens: the smallest of `wanted` and the limits of tokenizer and model."""
    known = [wanted, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    return min([UNLIMITED, *(limit for limit in known if limit)])


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save model and tokenizer; a complete temporary folder is renamed to `folder`, so that it is never incomplete."""
    target = Path(folder).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@torch.inference_mode()
def in_batches(lengths: Sequence[int], batch_size: int, score: Callable[[list[int]], Tensor]) -> list[float]:
    """Scores of N inputs, computed in batches of similar length, [N].

    Args:
        lengths: tokens of each input, [N].
        batch_size: inputs in one forward pass.
        score: indices of B inputs -> their scores, [B].
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    scores = [0.0] * len(lengths)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, value in zip(chosen, score(chosen).float().tolist(), strict=True):
            scores[i] = value
    return scores
