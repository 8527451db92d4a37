"""Premises that are longer than a model takes: cut at its limit, or read in windows of whole sentences.

An entailment model's score of a long document is the largest over its windows (SummaC, Laban et al. 2022, there over
sentences).

Entailment: does the document (premise) entail the completion (hypothesis), by a model of natural-language inference.

The reward of RLEF (Roit et al. 2023) is the log-probability of "entailment". Two kinds of checkpoints are read:
classifiers of pairs (ANLI, MNLI, ...), and text-to-text models that answer 1 or 0 to "premise: ... hypothesis: ..."
(google/t5_xxl_true_nli_mixture; Honovich et al. 2022).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
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

from reward_models.models.checkpoint import Checkpoint, in_batches, longest_input

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Offsets = Callable[[str], list[tuple[int, int]]]  # a text -> first and last character of each of its tokens


def cut(text: str, room: int, offsets: Offsets) -> str:
    """The first `room` tokens of a text."""
    tokens = offsets(text)
    return text if len(tokens) <= room else text[: tokens[room - 1][1]]


def windows(text: str, room: int, offsets: Offsets) -> list[str]:
    """The text in runs of whole sentences, each as long as fits `room` tokens.

    A sentence that does not fit alone is a run of its own, longer than the room.
    """
    runs: list[str] = []
    used = room + 1
    for sentence in SENTENCE_END.split(text):
        tokens = len(offsets(sentence))
        if used + tokens > room:
            runs.append(sentence)
            used = tokens
        else:
            runs[-1] += " " + sentence
            used += tokens
    return runs


log = logging.getLogger(__name__)
TEMPLATE = "premise: {} hypothesis: {}"
Kind = Literal["classifier", "text_to_text"]


def kind_of(config: Any) -> Kind:
    """What a checkpoint is by its configuration: an encoder-decoder without a classification head is text-to-text."""
    heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return "text_to_text" if config.is_encoder_decoder and not heads else "classifier"


def label_index(names: dict[int, str], wanted: str) -> int:
    """The output of a label, by its name in any case.

    Raises:
        ValueError: there is not exactly one.
    """
    found = [i for i, name in names.items() if name.casefold() == wanted.casefold()]
    if len(found) != 1:
        raise ValueError(f"entailment_label={wanted}: the model's labels are {list(names.values())}; set it to one.")
    return int(found[0])


class EntailmentModel:
    """Log-probabilities of entailment from a loaded model.

    Args:
        model: a sequence classifier, or an encoder-decoder that answers 1 or 0.
        tokenizer: its tokenizer, a fast one.
        kind: which of them.
        entailment_label: the classifier's label.
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
                raise ValueError("kind=text_to_text: the tokenizer writes 1 and 0 alike; set kind=classifier.")
            self.answers = [yes, no]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """First and last character of each token of a text."""
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def length(self, premise: str, hypothesis: str) -> int:
        """Tokens of the model's input."""
        texts = [TEMPLATE.format(premise, hypothesis)] if self.kind == "text_to_text" else [premise, hypothesis]
        return len(self.tokenizer(*texts)["input_ids"])  # pyright: ignore

    def log_probabilities(self, premises: list[str], hypotheses: list[str], longest: int) -> Tensor:
        """Of entailment, [B]: over the labels, or of the answer 1 against 0 at the decoder's first step."""
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
        kind: classifier or text_to_text; null: by the checkpoint's configuration.
        entailment_label: the classifier's label, in any case.
        split_premise: null cuts a premise that is too long; sentences takes the largest score over windows of whole
            sentences.
        measure: probability, or log_probability (RLEF).
        floor: the least log_probability.
        batch_size: inputs at a time.
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
        taken = {
            "kind": (kind, (None, "classifier", "text_to_text")),
            "split_premise": (split_premise, (None, "sentences")),
            "measure": (measure, ("probability", "log_probability")),
        }
        for name, (value, allowed) in taken.items():
            if value not in allowed:
                raise ValueError(f"{name}={value}: takes one of {', '.join(str(one or 'null') for one in allowed)}")
        if not floor < 0 or batch_size < 1:
            raise ValueError(f"floor={floor}, batch_size={batch_size}: takes floor < 0 and batch_size >= 1")
        self.checkpoint, self.kind, self.entailment_label = checkpoint, kind, entailment_label
        self.split_premise, self.measure, self.floor, self.batch_size = split_premise, measure, floor, batch_size
        self.cut_premises = 0
        self._loaded: tuple[EntailmentModel, int] | None = None

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], document: Sequence[str] | None = None, **columns: Any
    ) -> list[float]:
        """Score completions by `document`, or by the prompts where the task has no such column.

        Raises:
            ValueError: a completion alone is longer than the model takes.
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
        """The model and the tokens that it takes."""
        if self._loaded is None:
            config = AutoConfig.from_pretrained(self.checkpoint.place, revision=self.checkpoint.revision)
            kind, tokenizer = self.kind or kind_of(config), self.checkpoint.tokenizer()
            auto = AutoModelForSequenceClassification if kind == "classifier" else AutoModelForSeq2SeqLM
            model = self.checkpoint.model(auto)
            longest = longest_input(model, tokenizer, self.checkpoint.max_tokens)
            self._loaded = EntailmentModel(model, tokenizer, kind, self.entailment_label), longest  # pyright: ignore
        return self._loaded

    def _windows(self, premise: str, completion: str) -> list[str]:
        """What of a premise is read with a completion: all of it, windows, or what fits."""
        model, longest = self._load()
        if model.length(premise, completion) <= longest:
            return [premise]
        room = longest - model.length("", completion)
        if room < 1:
            raise ValueError(f"the completion {completion[:80]!r}... leaves no room for a premise in {longest} tokens.")
        found = windows(premise, room, model.offsets) if self.split_premise else [premise]
        kept = [cut(window, room, model.offsets) for window in found]
        self._count_cut(kept != found, longest)
        return kept

    def _count_cut(self, was_cut: bool, longest: int) -> None:
        """Count premises that lost text, and say it once."""
        if was_cut and not self.cut_premises:
            log.warning(
                "A premise is longer than the %d tokens of the entailment model and was cut; more are only counted. "
                "split_premise=sentences reads all of it.",
                longest,
            )
        self.cut_premises += was_cut
