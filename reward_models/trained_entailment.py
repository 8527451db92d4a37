"""An entailment reward whose model is trained at its first call, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from reward_models import checkpoints, classifier, matching
from reward_models.checkpoints import Checkpoint, longest_input, save
from reward_models.classifier import NewClassifier, TrainingSettings, train_classifier
from reward_models.entailment import Entailment
from reward_models.entry_lock import entry_lock
from reward_models.rows import Row, checked

log = logging.getLogger(__name__)
TRAINS = (checkpoints, classifier, matching)  # the source that a model depends on


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
