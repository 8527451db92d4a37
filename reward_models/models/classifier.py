"""Training a classifier of pairs (premise, hypothesis): not_entailment or entailment.

The model is a checkpoint with a new head, or a small DeBERTa-v2 with fresh weights (`NewClassifier`). The loss is
cross-entropy, the optimiser AdamW with linear warm-up and decay.

Two measures make a small model learn the task in about 1,000 steps:

- Initial weights (`init_same_word_attention`). Whether a text is supported begins with finding its words in the
  document. Query and key projections start equal up to a reflection of the segment direction, so that attention is
  highest to the same word in the other segment (cf. mimetic initialisation, Trockman & Kolter 2023, arXiv 2305.09828).
  The last layer starts with uniform attention to the second segment, so that the first token collects its states.
  Residual branches start small, so that the states keep the identity of their word.
- A word loss (`word_loss`). Rows may mark the unsupported words of a hypothesis. A second head, discarded after
  training, predicts them.
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
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from reward_models.models.checkpoint import Checkpoint

LABELS = {0: "not_entailment", 1: "entailment"}
SEGMENT_NORM = 0.5  # norm of a segment embedding; that of a word is about 1
RESIDUAL_SCALE = 0.3  # initial scale of the residual branches of attention and feed-forward layers
CONVOLUTION_SCALE = 0.2  # initial scale of the convolution over neighbouring words
SEGMENT_LOG_ODDS = 2.0  # initial attention of the last layer to the second segment over the first, about, in nats
UNSUPPORTED_WEIGHT = 3.0  # weight of unsupported words in the word loss; most words are supported
Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the optimisation.

    Attributes:
        steps: optimiser steps.
        batch_size: rows in a step.
        learning_rate: peak of the schedule.
        warmup_steps: steps of linear warm-up to the peak; the rate then falls linearly to 0 at the last step.
        weight_decay: of AdamW.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        seed: of initial weights and of the order of rows.
        word_weight: weight of the word loss, for rows with the column `unsupported`; 0 omits it.

    Raises:
        ValueError: a value is out of range.
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
        architecture: model_type and sizes, by the names of transformers' configuration.
        tokenizer: makes the tokenizer.
        same_word: initial attention to the same word in the other segment, in nats above unrelated words (DeBERTa-v2
            only); None keeps the initial weights of transformers.
    """

    architecture: dict[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    same_word: float | None = None

    def build(self, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer; the global random state is left unchanged.

        Raises:
            ValueError: `same_word` with a model or tokenizer that does not support it.
        """
        tokenizer = self.tokenizer()
        if self.same_word is not None and "token_type_ids" not in tokenizer.model_input_names:
            raise ValueError(
                "same_word: the tokenizer returns no segments; give it token_type_ids in model_input_names."
            )
        config = AutoConfig.for_model(
            **self.architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, id2label=LABELS
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config)
            if self.same_word is not None:
                init_same_word_attention(model, self.same_word)
        return model, tokenizer


@torch.no_grad()
def init_same_word_attention(model: PreTrainedModel, strength: float) -> None:
    """Set the initial attention weights in place, see the module's docstring.

    Args:
        model: a DeBERTa-v2 without position embeddings and with two segments.
        strength: attention score of the same word in the other segment, in nats above unrelated words.

    Raises:
        ValueError: the model is of another kind.
    """
    if not isinstance(model, DebertaV2ForSequenceClassification) or model.config.type_vocab_size != 2:
        raise ValueError("same_word: takes architecture.model_type=deberta-v2 with type_vocab_size=2.")
    base: Any = model.deberta
    width = model.config.hidden_size
    segments = base.embeddings.token_type_embeddings.weight
    direction = nn.functional.normalize(segments[1], dim=0)
    segments[1], segments[0] = SEGMENT_NORM * direction, -SEGMENT_NORM * direction
    reflection = torch.eye(width) - 2 * torch.outer(direction, direction)
    gain = (strength / (width / model.config.num_attention_heads) ** 0.5) ** 0.5
    if base.encoder.conv is not None:
        base.encoder.conv.conv.weight *= CONVOLUTION_SCALE
    *layers, last = base.encoder.layer
    for layer in (*layers, last):
        layer.attention.output.dense.weight *= RESIDUAL_SCALE
        layer.output.dense.weight *= RESIDUAL_SCALE
    for layer in layers:
        attention = layer.attention.self
        nn.init.orthogonal_(attention.query_proj.weight, gain=gain)
        attention.key_proj.weight.copy_(attention.query_proj.weight @ reflection)
    nn.init.orthogonal_(last.attention.self.key_proj.weight)
    last.attention.self.query_proj.weight.zero_()
    last.attention.self.query_proj.bias.copy_(SEGMENT_LOG_ODDS * last.attention.self.key_proj.weight @ direction)


def from_checkpoint(checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a checkpoint, with a new head of two labels if its own has another shape."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint.source, revision=checkpoint.revision, id2label=LABELS, ignore_mismatched_sizes=True
    )
    return model, AutoTokenizer.from_pretrained(checkpoint.source, revision=checkpoint.revision)


def train_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: TrainingSettings,
    longest: int,
    progress: Callable[[int, float], None],
) -> None:
    """Train in place; the model is in evaluation mode afterwards.

    Args:
        model: a classifier with the labels `LABELS`.
        tokenizer: encodes pairs.
        rows: dicts of premise, hypothesis, label (0 or 1) and, for the word loss, unsupported.
        settings: of the optimisation.
        longest: tokens of an input; longer premises are truncated.
        progress: called with each step, from 1, and its loss.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        word_head = nn.Linear(model.config.hidden_size, 1, device=model.device)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *word_head.parameters()],
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
        if settings.word_weight > 0:  # states before the last layer: the last one only collects them in the first token
            loss = loss + settings.word_weight * word_loss(word_head(output.hidden_states[-2])[..., 0], batch, chosen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        progress(step, loss.item())
    model.eval()


def batches(rows: Sequence[Row], settings: TrainingSettings) -> list[list[Row]]:
    """The rows of every step: epochs over shuffled documents, the rows of one document side by side.

    With a supported claim and its false variant in one step the gradient is about the word in which they differ.
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


def word_loss(logits_BS: torch.Tensor, encoded: BatchEncoding, rows: Sequence[Row]) -> torch.Tensor:
    """Binary cross-entropy of the hypotheses' words: is the word unsupported? A scalar.

    Args:
        logits_BS: log odds of "unsupported" of each token, [B, S].
        encoded: the pairs, from a fast tokenizer, which maps tokens to words.
        rows: B dicts with `unsupported`: 0 or 1 for each word of the hypothesis, or None, which omits the row.
    """
    targets = [
        [
            -1.0 if side != 1 or word is None or row["unsupported"] is None else float(row["unsupported"][word])
            for side, word in zip(encoded.sequence_ids(i), encoded.word_ids(i), strict=True)
        ]
        for i, row in enumerate(rows)
    ]
    targets_BS = torch.tensor(targets, device=logits_BS.device)
    marked = targets_BS >= 0
    weight = torch.tensor(UNSUPPORTED_WEIGHT, device=logits_BS.device)
    return nn.functional.binary_cross_entropy_with_logits(logits_BS[marked], targets_BS[marked], pos_weight=weight)
