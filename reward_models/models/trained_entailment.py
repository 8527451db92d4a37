"""Rows that reward models are trained on: files of one's own, or a generator; held-out rows share no document.

An entailment reward whose model is trained at its first call, and kept.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from reward_models.guard import entry_lock
from reward_models.models import checkpoint, classifier
from reward_models.models.checkpoint import Checkpoint, longest_input, save
from reward_models.models.classifier import NewClassifier, TrainingSettings, train_classifier
from reward_models.models.entailment import Entailment

Row = dict[str, Any]
LABEL_NAMES = {"1": 1, "entailment": 1, "0": 0, "not_entailment": 0, "neutral": 0, "contradiction": 0}


def read_files(files: Sequence[str]) -> list[Row]:
    """Rows of .jsonl and .csv files.

    Raises:
        ValueError: a file is missing, of another kind, or unreadable.
    """
    rows: list[Row] = []
    for name in files:
        file = Path(name).expanduser()
        if not file.is_file() or file.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"files={name}: takes .jsonl or .csv files that exist.")
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                rows += csv.DictReader(stream) if file.suffix == ".csv" else map(json.loads, stream)
        except ValueError as error:
            raise ValueError(f"files={name}: it cannot be read ({error}).") from error
    return rows


def checked(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Rows with texts in all columns, and labels as 0 or 1.

    Raises:
        ValueError: a row lacks a column, or its label is none.
    """
    if not rows:
        raise ValueError("there are no rows: set files=[rows.jsonl], or rows to a generator.")
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in columns if not isinstance(row, Mapping) or row.get(name) is None]
        if lacking:
            raise ValueError(f"row {number} has no {', '.join(lacking)}: rows take the columns {', '.join(columns)}.")
        if "label" in columns and str(row["label"]).casefold() not in LABEL_NAMES:
            raise ValueError(f"row {number}: label={row['label']!r}: takes one of {', '.join(LABEL_NAMES)}.")
    if "label" not in columns:
        return list(rows)
    return [{**row, "label": LABEL_NAMES[str(row["label"]).casefold()]} for row in rows]


def split(
    rows: Sequence[Row], document: Callable[[Row], str], held_out: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Rows to train on and held-out rows, without a document in both.

    Args:
        rows: all of them.
        document: what a row is about.
        held_out: share of the documents.
        seed: of their choice.

    Raises:
        ValueError: one of the two would be empty.
    """
    documents = sorted({document(row) for row in rows})
    random.Random(seed).shuffle(documents)
    aside = set(documents[: round(held_out * len(documents))])
    if not 0 < len(aside) < len(documents):
        raise ValueError(
            f"held_out={held_out} of {len(documents)} documents leaves nothing to train on or nothing to measure on; "
            "set it to a share between 0 and 1, or give more documents."
        )
    return [row for row in rows if document(row) not in aside], [row for row in rows if document(row) in aside]


log = logging.getLogger(__name__)
TRAINS = (checkpoint, classifier)  # the source that a model depends on


class TrainedEntailment:
    """Reward: entailment by a model that is trained on generated rows.

    The model is kept in `cache_dir`/reward_models under a hash of all that it depends on. Nothing is generated, trained
    or loaded before the first call; of two processes that come first, one trains and the other waits.

    Args:
        rows: makes the rows: premise, hypothesis, label.
        new: the model before training.
        training: of the optimiser.
        cache_dir: where models are kept.
        measure: probability or log_probability, see `Entailment`.
        batch_size: inputs at a time.
    """

    def __init__(
        self,
        rows: Callable[[], Sequence[Row]],
        new: NewClassifier,
        training: TrainingSettings,
        cache_dir: str,
        measure: Any = "probability",
        batch_size: int = 64,
    ) -> None:
        self.rows, self.new, self.training, self.cache_dir = rows, new, training, Path(cache_dir).expanduser()
        self.measure, self.batch_size = measure, batch_size
        Entailment(Checkpoint("any", device="cpu"), measure=measure, batch_size=batch_size)  # refuses what is wrong
        self._reward: Entailment | None = None

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Score completions, as `Entailment` does."""
        if self._reward is None:
            place = Checkpoint(str(self.folder()), device="cpu")
            self._reward = Entailment(place, measure=self.measure, batch_size=self.batch_size)
        return self._reward(prompts, completions, **columns)

    def trained(self) -> bool:
        """Whether the first call finds a model."""
        return self._place(self._rows()).is_dir()

    def folder(self) -> Path:
        """The trained model's folder; trains it if there is none."""
        rows = self._rows()
        folder = self._place(rows)
        if not folder.is_dir():
            with entry_lock(folder):
                if not folder.is_dir():
                    self._train(rows, folder)
        return folder

    def _rows(self) -> list[Row]:
        return checked(self.rows(), ("premise", "hypothesis", "label"))

    def _place(self, rows: Sequence[Row]) -> Path:
        return self.cache_dir / "reward_models" / self._key(rows)

    def _key(self, rows: Sequence[Row]) -> str:
        """Hash of rows, settings, source and libraries."""
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode())
        digest.update(repr((self.new.architecture, self.new.same_word, self.training)).encode())
        tokenizer: Any = self.new.tokenizer()
        digest.update(f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.model_input_names}".encode())
        for module in TRAINS:
            digest.update(Path(str(module.__file__)).read_bytes())
        for library in ("torch", "transformers", "tokenizers"):
            digest.update(f"{library} {version(library)}".encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode(mode=False)
    @torch.enable_grad()  # a run asks for its first reward while it evaluates
    def _train(self, rows: Sequence[Row], folder: Path) -> None:
        started = time.monotonic()
        log.info("Training the reward's entailment model: %d rows, %d steps ...", len(rows), self.training.steps)

        def progress(step: int, loss: float) -> None:
            if step % 100 == 0:
                log.info("  step %d of %d, loss %.3f", step, self.training.steps, loss)

        model, tokenizer = self.new.build(self.training.seed)
        train_classifier(model, tokenizer, rows, self.training, longest_input(model, tokenizer, None), progress)
        save(model, tokenizer, folder)
        log.info("  trained in %.0f s, kept in %s", time.monotonic() - started, folder)
