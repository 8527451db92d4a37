"""Training a classifier of pairs (premise, hypothesis) -> entailment: cross-entropy, AdamW, linear decay.

Rows may say which words of a hypothesis are unsupported. A second loss on these, by a head that is thrown away at the
end, tells a small model within a hundred steps what it would else look for in thousands.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from reward_models.checkpoints import Checkpoint
from reward_models.matching import look_for_the_same_word

LABELS = {0: "not_entailment", 1: "entailment"}
UNSUPPORTED_WEIGHT = 3.0  # most words are supported
Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingSettings:
    """Of the optimiser.

    Attributes:
        steps: of it.
        batch_size: rows of a step.
        learning_rate: its peak.
        warmup_steps: up to the peak; it falls linearly to 0 at the end.
        weight_decay: AdamW's.
        max_grad_norm: longer gradients are scaled down to it.
        seed: of initial weights and of the order of rows.
        word_weight: of the loss on words, for rows with the column `unsupported`; 0 leaves it out.

    Raises:
        ValueError: one is out of range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    word_weight: float = 0.0

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "batch_size": 1, "warmup_steps": 0, "weight_decay": 0, "seed": 0, "word_weight": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"training.{name}={getattr(self, name)}: takes a number >= {low}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name}={getattr(self, name)}: takes a number > 0")


@dataclass(frozen=True)
class NewClassifier:
    """A classifier with fresh weights.

    Attributes:
        architecture: model_type and sizes, as transformers names them.
        tokenizer: makes its tokenizer.
        same_word: how strongly its heads start out looking for the same word in the other text (reward_models.matching,
            DeBERTa-v2 only); null leaves transformers' initial weights.
    """

    architecture: dict[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    same_word: float | None = None

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer.

        Raises:
            ValueError: `same_word` with a model or tokenizer that it does not fit.
        """
        tokenizer = self.tokenizer()
        if self.same_word is not None and "token_type_ids" not in tokenizer.model_input_names:
            raise ValueError("same_word: the tokenizer tells no segments; give it token_type_ids in model_input_names.")
        config = AutoConfig.for_model(
            **self.architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, id2label=LABELS
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config)
            if self.same_word is not None:
                look_for_the_same_word(model, self.same_word)
        return model, tokenizer


def word_loss(logits_BS: torch.Tensor, encoded: BatchEncoding, rows: Sequence[Row]) -> torch.Tensor:
    """Binary cross-entropy of every hypothesis's words: is it unsupported?

    Args:
        logits_BS: one for each token.
        encoded: pairs of a fast tokenizer, which knows what word a token is of.
        rows: with `unsupported`, 0 or 1 for each word of the hypothesis, or None where no word alone is at fault.
    """
    truth = [
        [
            -1.0 if side != 1 or word is None or row["unsupported"] is None else float(row["unsupported"][word])
            for side, word in zip(encoded.sequence_ids(i), encoded.word_ids(i), strict=True)
        ]
        for i, row in enumerate(rows)
    ]
    truth_BS = torch.tensor(truth, device=logits_BS.device)
    told = truth_BS >= 0
    weight = torch.tensor(UNSUPPORTED_WEIGHT, device=logits_BS.device)
    return nn.functional.binary_cross_entropy_with_logits(logits_BS[told], truth_BS[told], pos_weight=weight)


def from_checkpoint(checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint with a new head of two labels."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint.place, revision=checkpoint.revision, id2label=LABELS, ignore_mismatched_sizes=True
    )
    return model, AutoTokenizer.from_pretrained(checkpoint.place, revision=checkpoint.revision)


def batches(rows: Sequence[Row], settings: TrainingSettings) -> list[list[Row]]:
    """The rows of every step: passes over shuffled documents, rows of one document side by side.

    A supported claim and its false neighbour in one step make a gradient about the word in which they differ.
    """
    rng = random.Random(settings.seed)
    by_premise: dict[str, list[Row]] = {}
    for row in rows:
        by_premise.setdefault(row["premise"], []).append(row)
    documents, stream = list(by_premise.values()), []
    while len(stream) < settings.steps * settings.batch_size:
        rng.shuffle(documents)
        stream += [row for document in documents for row in document]
    return [stream[i * settings.batch_size : (i + 1) * settings.batch_size] for i in range(settings.steps)]


def train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: TrainingSettings,
    longest: int,
    progress: Callable[[int, float], None],
) -> None:
    """Train in place, and leave the model in evaluation mode.

    Args:
        model: two labels, as LABELS.
        tokenizer: of pairs.
        rows: premise, hypothesis, label (0 or 1).
        settings: of the optimiser.
        longest: tokens of an input; a premise that does not fit is cut.
        progress: told each step and its loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        words = nn.Linear(model.config.hidden_size, 1, device=model.device)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *words.parameters()],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.99),
    )
    schedule = get_linear_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
    model.train()
    for step, chosen in enumerate(batches(rows, settings), start=1):
        batch = tokenizer(
            [row["premise"] for row in chosen],
            [row["hypothesis"] for row in chosen],
            truncation="only_first",
            max_length=longest,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        labels = torch.tensor([row["label"] for row in chosen], device=model.device)
        output = model(**batch, output_hidden_states=settings.word_weight > 0)
        loss = nn.functional.cross_entropy(output.logits.float(), labels)
        if settings.word_weight > 0:  # the last layer collects: what is known of a word is in the one before
            loss = loss + settings.word_weight * word_loss(words(output.hidden_states[-2])[..., 0], batch, chosen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    model.eval()
