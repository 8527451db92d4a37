"""Entailment as a reward: does the document (premise) entail the completion (hypothesis)?

The reward of RLEF (Roit et al. 2023, arXiv 2306.00186) is the log-probability of "entailment". `Entailment` takes two
kinds of checkpoints: classifiers of pairs (ANLI, MNLI, ...), and text-to-text models that answer 1 or 0 to
"premise: ... hypothesis: ..." (google/t5_xxl_true_nli_mixture; Honovich et al. 2022). `TrainedEntailment` trains a
small classifier at its first call and keeps it in a cache on disk.

A premise longer than the model's input is truncated, or split into windows of whole sentences. The score of a document
is then the largest over its windows (SummaC, Laban et al. 2022, has the maximum over sentences).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.guard import entry_lock
from reward_models.models import checkpoint as checkpoint_module
from reward_models.models import classifier as classifier_module
from reward_models.models.checkpoint import Checkpoint, in_batches, longest_input, save
from reward_models.models.classifier import NewClassifier, Row, TrainingSettings, train_classifier
from reward_models.models.training_rows import checked

log = logging.getLogger(__name__)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
TEMPLATE = "premise: {} hypothesis: {}"  # of text-to-text models
SOURCE = (checkpoint_module, classifier_module)  # modules that determine a trained model
Kind = Literal["classifier", "text_to_text"]
Offsets = Callable[[str], list[tuple[int, int]]]  # text -> first and last character of each of its tokens


def truncated(text: str, max_tokens: int, offsets: Offsets) -> str:
    """The first `max_tokens` tokens of a text."""
    tokens = offsets(text)
    return text if len(tokens) <= max_tokens else text[: tokens[max_tokens - 1][1]]


def sentence_windows(text: str, max_tokens: int, offsets: Offsets) -> list[str]:
    """The text in windows of whole sentences, each as many as fit `max_tokens`.

    A sentence that does not fit alone is a window of its own, longer than `max_tokens`.
    """
    windows: list[str] = []
    used = max_tokens + 1
    for sentence in SENTENCE_END.split(text):
        tokens = len(offsets(sentence))
        if used + tokens > max_tokens:
            windows.append(sentence)
            used = tokens
        else:
            windows[-1] += " " + sentence
            used += tokens
    return windows


def kind_of(config: Any) -> Kind:
    """The kind of a checkpoint: an encoder-decoder without a classification head is text-to-text."""
    heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return "text_to_text" if config.is_encoder_decoder and not heads else "classifier"


def label_index(names: dict[int, str], wanted: str) -> int:
    """Index of a label by its name, in any case.

    Raises:
        ValueError: no label, or more than one, has that name.
    """
    found = [i for i, name in names.items() if name.casefold() == wanted.casefold()]
    if len(found) != 1:
        raise ValueError(f"entailment_label={wanted}: the model's labels are {list(names.values())}; set it to one.")
    return int(found[0])


class EntailmentModel:
    """A loaded model that returns log-probabilities of entailment.

    Args:
        model: a sequence classifier, or an encoder-decoder that answers 1 or 0.
        tokenizer: its fast tokenizer.
        kind: which of the two.
        entailment_label: label of the classifier.

    Raises:
        ValueError: there is no such label, or the tokenizer has one token for 1 and 0.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: Kind, entailment_label: str
    ) -> None:
        self.model, self.tokenizer, self.kind = model, tokenizer, kind
        if kind == "classifier":
            self.index = label_index(dict(model.config.id2label or {}), entailment_label)  # pyright: ignore
        else:
            yes, no = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("1", "0"))
            if yes == no:
                raise ValueError(
                    "kind=text_to_text: the tokenizer has the same first token for 1 and 0; set kind=classifier."
                )
            self.answers = [yes, no]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """First and last character of each token of a text."""
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def length(self, premise: str, hypothesis: str) -> int:
        """Tokens of the input for a pair, special tokens included."""
        texts = [TEMPLATE.format(premise, hypothesis)] if self.kind == "text_to_text" else [premise, hypothesis]
        return len(self.tokenizer(*texts)["input_ids"])  # pyright: ignore

    def log_probabilities(self, premises: list[str], hypotheses: list[str], longest: int) -> Tensor:
        """Log-probabilities of entailment, [B].

        A classifier's are over its labels; a text-to-text model's over the answers 1 and 0 at the first decoder step.

        Args:
            premises: [B].
            hypotheses: [B].
            longest: tokens of an input; a classifier's longer premises are truncated.
        """
        if self.kind == "classifier":
            batch = self.tokenizer(
                premises, hypotheses, truncation="only_first", max_length=longest, padding=True, return_tensors="pt"
            ).to(self.model.device)
            return self.model(**batch).logits.float().log_softmax(dim=-1)[:, self.index]
        texts = [TEMPLATE.format(*pair) for pair in zip(premises, hypotheses, strict=True)]
        batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
        start = torch.full((len(texts), 1), self.model.config.decoder_start_token_id, device=self.model.device)
        logits = self.model(batch["input_ids"], batch["attention_mask"], decoder_input_ids=start).logits
        return logits[:, 0, self.answers].float().log_softmax(dim=-1)[:, 0]


class Entailment:
    """Reward: the probability that the document entails the completion, or its logarithm.

    Nothing is loaded before the first call.

    Args:
        checkpoint: the model.
        kind: classifier or text_to_text; None: by the configuration of the checkpoint.
        entailment_label: label of the classifier, in any case.
        split_premise: None truncates a premise that is too long; "sentences" takes the largest score over windows of
            whole sentences.
        measure: probability, or log_probability (RLEF).
        floor: lowest log_probability, < 0.
        batch_size: inputs in one forward pass.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        kind: Kind | None = None,
        entailment_label: str = "entailment",
        split_premise: Literal["sentences"] | None = None,
        measure: Literal["probability", "log_probability"] = "probability",
        floor: float = -10.0,
        batch_size: int = 32,
    ) -> None:
        choices = {
            "kind": (kind, (None, "classifier", "text_to_text")),
            "split_premise": (split_premise, (None, "sentences")),
            "measure": (measure, ("probability", "log_probability")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value}: takes one of {', '.join(str(one or 'null') for one in allowed)}")
        if not floor < 0 or batch_size < 1:
            raise ValueError(f"floor={floor}, batch_size={batch_size}: takes floor < 0 and batch_size >= 1")
        self.checkpoint, self.kind, self.entailment_label = checkpoint, kind, entailment_label
        self.split_premise, self.measure, self.floor, self.batch_size = split_premise, measure, floor, batch_size
        self.truncated_premises = 0
        self._loaded: tuple[EntailmentModel, int] | None = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Scores of B completions against `document`, or against the prompts if the task has no such column, [B].

        Raises:
            ValueError: a completion alone is longer than the model's input.
        """
        premises = prompts if document is None else document
        pairs = [
            (i, window, text)
            for i, (premise, text) in enumerate(zip(premises, completions, strict=True))
            for window in self._windows(premise, text)
        ]
        model, longest = self._load()
        scores = in_batches(
            [len(window) + len(text) for _, window, text in pairs],
            self.batch_size,
            lambda rows: model.log_probabilities([pairs[i][1] for i in rows], [pairs[i][2] for i in rows], longest),
        )
        best = [-math.inf] * len(completions)
        for (i, *_), score in zip(pairs, scores, strict=True):
            best[i] = max(best[i], score)
        return [max(one, self.floor) if self.measure == "log_probability" else math.exp(one) for one in best]

    def _load(self) -> tuple[EntailmentModel, int]:
        """The model, and the tokens of its longest input."""
        if self._loaded is None:
            config = AutoConfig.from_pretrained(self.checkpoint.source, revision=self.checkpoint.revision)
            kind, tokenizer = self.kind or kind_of(config), self.checkpoint.tokenizer()
            auto = AutoModelForSequenceClassification if kind == "classifier" else AutoModelForSeq2SeqLM
            model = self.checkpoint.model(auto)
            longest = longest_input(model, tokenizer, self.checkpoint.max_tokens)
            self._loaded = EntailmentModel(model, tokenizer, kind, self.entailment_label), longest  # pyright: ignore
        return self._loaded

    def _windows(self, premise: str, completion: str) -> list[str]:
        """The premise if it fits the model with the completion, else its windows or its first tokens."""
        model, longest = self._load()
        if model.length(premise, completion) <= longest:
            return [premise]
        room = longest - model.length("", completion)
        if room < 1:
            raise ValueError(f"the completion {completion[:80]!r}... leaves no room for a premise in {longest} tokens.")
        found = sentence_windows(premise, room, model.offsets) if self.split_premise else [premise]
        kept = [truncated(window, room, model.offsets) for window in found]
        self._count_truncated(kept != found, longest)
        return kept

    def _count_truncated(self, was_truncated: bool, longest: int) -> None:
        """Count premises that lost text; the first one is logged."""
        if was_truncated and not self.truncated_premises:
            log.warning(
                "A premise is longer than the %d tokens of the entailment model and was truncated; further ones are "
                "only counted. split_premise=sentences scores all of a premise.",
                longest,
            )
        self.truncated_premises += was_truncated


class TrainedEntailment:
    """Reward: entailment by a small classifier that is trained on generated rows at the first call.

    The model is kept in `cache_dir`/reward_models under a hash of everything that determines it. Nothing is generated,
    trained or loaded before the first call. If two processes call it at once, one trains and the other waits.

    Args:
        rows: makes the rows: premise, hypothesis, label.
        new: the model before training.
        training: settings of the optimisation.
        cache_dir: folder of the cache.
        measure: probability or log_probability, see `Entailment`.
        batch_size: inputs in one forward pass.

    Raises:
        ValueError: `measure` or `batch_size` is out of range.
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
        Entailment(Checkpoint("any", device="cpu"), measure=measure, batch_size=batch_size)  # checks the settings
        self._reward: Entailment | None = None

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """Scores of B completions, as of `Entailment`, [B]."""
        if self._reward is None:
            checkpoint = Checkpoint(str(self.folder()), device="cpu")
            self._reward = Entailment(checkpoint, measure=self.measure, batch_size=self.batch_size)
        return self._reward(prompts, completions, **columns)

    def trained(self) -> bool:
        """Whether the trained model is in the cache."""
        return self._entry(self._rows()).is_dir()

    def folder(self) -> Path:
        """Folder of the trained model, which is trained if it is not in the cache."""
        rows = self._rows()
        folder = self._entry(rows)
        if not folder.is_dir():
            with entry_lock(folder):
                if not folder.is_dir():
                    self._train(rows, folder)
        return folder

    def _rows(self) -> list[Row]:
        return checked(self.rows(), ("premise", "hypothesis", "label"))

    def _entry(self, rows: Sequence[Row]) -> Path:
        return self.cache_dir / "reward_models" / self._key(rows)

    def _key(self, rows: Sequence[Row]) -> str:
        """Hash of rows, settings, tokenizer, source code and versions of libraries."""
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode())
        digest.update(repr((self.new.architecture, self.new.same_word, self.training)).encode())
        tokenizer: Any = self.new.tokenizer()
        digest.update(f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.model_input_names}".encode())
        for module in SOURCE:
            digest.update(Path(str(module.__file__)).read_bytes())
        for library in ("torch", "transformers", "tokenizers"):
            digest.update(f"{library} {version(library)}".encode())
        return digest.hexdigest()[:16]

    @torch.inference_mode(mode=False)
    @torch.enable_grad()  # the first call may come from an evaluation, where gradients are off
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
