"""Initial weights of a small DeBERTa-v2 whose heads look for the same word in the other text.

Telling whether a text is supported starts with finding its words in the document. From random weights a small model
spends most of its training on learning to compare; here it begins with that (the query and key of a head start as
one another's image: mimetic initialisation, Trockman & Kolter 2023, arXiv 2305.09828).

- Query and key projections start equal but for the direction in which the two segments differ, which is reversed: a
  head's score is highest for the same word in the other segment.
- The last layer's heads start looking at all words of the second segment: the first token collects what they found.
- What the layers add starts small, so that words keep their identity.

Training a classifier of pairs (premise, hypothesis) -> entailment: cross-entropy, AdamW, linear decay.

Rows may say which words of a hypothesis are unsupported. A second loss on these, by a head that is thrown away at the
end, tells a small model within a hundred steps what it would else look for in thousands.

How good a classifier's probabilities are on rows that it was not trained on, with bootstrap intervals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

SEGMENT = 0.5  # length of a segment's embedding; a word's is about 1
ADDED = 0.3  # scale of what attention and feed-forward layers add at first
CONVOLUTION = 0.2  # scale of what the neighbours add at first
LOOK = 2.0  # how much more the last layer looks at the second segment, in log odds


@torch.no_grad()
def look_for_the_same_word(model: PreTrainedModel, strength: float) -> None:
    """Set the weights of attention in place.

    Args:
        model: a DeBERTa-v2 without positions and with two segments.
        strength: attention score of the same word in the other text, in nats above unrelated words.

    Raises:
        ValueError: the model is another.
    """
    if not isinstance(model, DebertaV2ForSequenceClassification) or model.config.type_vocab_size != 2:
        raise ValueError("same_word: takes architecture.model_type=deberta-v2 with type_vocab_size=2.")
    base: Any = model.deberta
    width = model.config.hidden_size
    segments = base.embeddings.token_type_embeddings.weight
    direction = nn.functional.normalize(segments[1], dim=0)
    segments[1], segments[0] = SEGMENT * direction, -SEGMENT * direction
    reverse = torch.eye(width) - 2 * torch.outer(direction, direction)
    gain = (strength / (width / model.config.num_attention_heads) ** 0.5) ** 0.5
    if base.encoder.conv is not None:
        base.encoder.conv.conv.weight *= CONVOLUTION
    *layers, last = base.encoder.layer
    for layer in (*layers, last):
        layer.attention.output.dense.weight *= ADDED
        layer.output.dense.weight *= ADDED
    for layer in layers:
        attention = layer.attention.self
        nn.init.orthogonal_(attention.query_proj.weight, gain=gain)
        attention.key_proj.weight.copy_(attention.query_proj.weight @ reverse)
    nn.init.orthogonal_(last.attention.self.key_proj.weight)
    last.attention.self.query_proj.weight.zero_()
    last.attention.self.query_proj.bias.copy_(LOOK * last.attention.self.key_proj.weight @ direction)


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
        same_word: how strongly its heads start out looking for the same word in the other text (reward_models.models.classifier,
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


Array = NDArray[np.float64]
BINS = 10
RESAMPLES = 500


def accuracy(labels_N: Array, probabilities_N: Array) -> float:
    """Share of rows on the right side of 1/2."""
    return float(np.mean((probabilities_N > 0.5) == (labels_N == 1)))


def auc(labels_N: Array, scores_N: Array) -> float:
    """P(score of a positive > score of a negative), a tie counting half: the Mann-Whitney statistic.

    nan without a positive or a negative.
    """
    _, inverse_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]  # from 1; ties share their mean
    positives = int(labels_N.sum())
    pairs = positives * (len(labels_N) - positives)
    return float((ranks_N[labels_N == 1].sum() - positives * (positives + 1) / 2) / pairs) if pairs else float("nan")


def brier(labels_N: Array, probabilities_N: Array) -> float:
    """Mean squared error of the probabilities (Brier 1950)."""
    return float(np.mean((probabilities_N - labels_N) ** 2))


def expected_calibration_error(labels_N: Array, probabilities_N: Array) -> float:
    """Σ_bins share · |mean probability - share of positives|, over 10 bins of equal width (Guo et al. 2017, Eq. 3)."""
    bins_N = np.minimum((probabilities_N * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins_N, weights=probabilities_N - labels_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels_N))


MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "auc": auc,
    "expected_calibration_error": expected_calibration_error,
    "brier": brier,
}


def report(
    labels: Sequence[int], probabilities: Sequence[float], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Every measure with its 95% percentile interval over resampled documents.

    Args:
        labels: 1 or 0, [N].
        probabilities: of 1, [N].
        groups: what each row is about, [N]: rows of one document are drawn together.
        seed: of the resampling.
    """
    labels_N, probabilities_N = np.asarray(labels, float), np.asarray(probabilities, float)
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    rows = [np.flatnonzero(group_N == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    found: dict[str, Any] = {"rows": len(labels_N), "documents": len(names), "positives": int(labels_N.sum())}
    for name, measure in MEASURES.items():
        resampled = [measure(labels_N[draw], probabilities_N[draw]) for draw in draws]
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
        found[name] = {"mean": measure(labels_N, probabilities_N), "low": float(low), "high": float(high)}
    return found
